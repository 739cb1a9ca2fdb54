// The live map on the Foresight node, and the text of the report nodes. Shows what the server says; decides nothing.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TEXT_HEIGHTS = { ForesightReport: 205, ForesightCompare: 50, ForesightSpeedup: 40 };
const LEGEND = { warmup: "warmup", computed: "computed", close: "close to reuse", reused: "reused" };
const MAP_HEIGHT = 190;
const KEPT = 64; // runs, of all workflows

const runs = new Map(); // run number -> record as of GET /foresight/runs
const views = new WeakMap(); // node -> MapView or TextView
let ready = false; // before the first graph, even asking for it is an error

// ---- which node a record belongs to

const rootGraph = () => (ready ? (app.rootGraph ?? app.graph) : undefined);

/** The node of an execution id, "7", or "3:7" for node 7 in the subgraph of node 3; undefined where there is none. */
function findNode(id) {
  let graph = rootGraph();
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.nodes?.find((n) => String(n.id) === part);
    graph = node?.subgraph;
  }
  return node;
}

const isHere = (record) => record.workflow_id != null && record.workflow_id === rootGraph()?.id;

/** The newest prompt's runs for a node, by run number. */
function runsOf(node) {
  const mine = [...runs.values()].filter((r) => isHere(r) && r.node_id != null && findNode(r.node_id) === node);
  mine.sort((a, b) => a.run - b.run);
  return mine.filter((r) => r.prompt_id === mine.at(-1).prompt_id);
}

function keep(record) {
  runs.set(record.run, record);
  if (runs.size > KEPT) runs.delete(Math.min(...runs.keys()));
}

/** Merge one event: its rows replace what is known from `first` on. False when rows before them are missing. */
function merge(message) {
  const known = runs.get(message.run)?.evaluations ?? [];
  const complete = message.first <= known.length;
  keep({ ...message, evaluations: [...known.slice(0, message.first), ...message.evaluations] });
  return complete;
}

async function fetchRuns() {
  const response = await api.fetchApi("/foresight/runs");
  if (!response.ok) return;
  for (const record of await response.json()) {
    const known = runs.get(record.run)?.evaluations.length ?? 0; // events may have overtaken the answer
    if (record.evaluations.length >= known) keep(record);
  }
  showAll();
}

function showAll(graph = rootGraph()) {
  for (const node of graph?.nodes ?? []) {
    views.get(node)?.refresh();
    if (node.subgraph) showAll(node.subgraph);
  }
}

// ---- the map

const seconds = (value) => (value == null ? "?" : `${value.toPrecision(value < 100 ? 3 : 4)} s`);
const bytes = (count) => (count >= 2 ** 29 ? `${(count / 2 ** 30).toFixed(2)} GiB` : `${(count / 2 ** 20).toFixed(1)} MiB`);
const percent = (share) => `${Math.round(share * 100)} %`;

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

/** What a cell shows: reused share 0..1, nearness to reuse 0..1, and the words for it. */
function cellOf(evaluation, block) {
  const reused = evaluation.reused[block] ?? 0;
  const calls = reused + (evaluation.computed[block] ?? 0);
  if (!calls) return null;
  const ratio = evaluation.ratio[block];
  // a ratio of 1 qualifies, 3 is far off; report/plot.py shades alike
  const near = ratio == null || evaluation.kind === "warmup" ? 0 : Math.min(1, Math.max(0, (3 - ratio) / 2));
  let words = reused === calls ? "reused" : reused ? `reused in ${reused} of ${calls} calls` : "computed";
  if (evaluation.kind === "warmup") words = "computed (warmup)";
  else if (ratio != null) words += `, ${ratio.toPrecision(2)} of the limit`;
  return { share: reused / calls, near, warmup: evaluation.kind === "warmup", words };
}

class MapView {
  constructor(node) {
    this.node = node;
    this.chosen = null; // number of the run whose tab was clicked
    this.cursor = null; // [block, evaluation]
    this.tabs = element("div", "foresight-tabs");
    this.tabs.setAttribute("role", "tablist");
    this.canvas = element("canvas", "");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.figures = element("div", "foresight-figures");
    this.readout = element("div", "foresight-readout");
    this.readout.setAttribute("aria-live", "polite");
    this.legend = element("div", "foresight-legend");
    for (const [name, label] of Object.entries(LEGEND)) {
      const entry = element("span", "", label);
      entry.style.setProperty("--colour", `var(--foresight-${name})`);
      this.legend.append(entry);
    }
    this.empty = element("div", "foresight-empty", "Which blocks are reused shows here while the sampler runs.");
    this.root = element("div", "foresight-map", this.empty);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.moveTo(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  refresh() {
    this.runs = runsOf(this.node);
    if (!this.runs.length) {
      this.root.replaceChildren(this.empty);
      return;
    }
    const newest = this.runs.at(-1);
    const chosen = this.runs.find((r) => r.run === this.chosen);
    if (!chosen) this.chosen = null;
    this.run = chosen ?? newest;
    if (this.root.firstChild === this.empty) {
      this.root.replaceChildren(this.tabs, this.canvas, this.figures, this.readout, this.legend);
    }
    this.showTabs();
    this.showFigures();
    this.draw();
  }

  showTabs() {
    const titles = this.runs.map((r) => findNode(r.sampler_id)?.title ?? `sampler ${r.sampler_id ?? "?"}`);
    const labels = titles.map((title, i) => (titles.indexOf(title) === titles.lastIndexOf(title) ? title : `${title} ${i + 1}`));
    const wanted = this.runs.length > 1 ? labels : [];
    while (this.tabs.childElementCount > wanted.length) this.tabs.lastChild.remove();
    while (this.tabs.childElementCount < wanted.length) {
      const tab = element("button", "");
      tab.type = "button";
      tab.setAttribute("role", "tab");
      const index = this.tabs.childElementCount;
      tab.addEventListener("click", () => {
        this.chosen = this.runs[index].run;
        this.cursor = null;
        this.refresh();
      });
      this.tabs.append(tab);
    }
    wanted.forEach((label, i) => {
      const tab = this.tabs.children[i];
      if (tab.textContent !== label) tab.textContent = label;
      tab.setAttribute("aria-selected", String(this.runs[i] === this.run));
    });
  }

  get columns() {
    const count = this.run.evaluations.length;
    return this.run.done ? count : Math.max(count, this.run.steps ?? 0);
  }

  get blocks() {
    return Math.max(1, ...this.run.evaluations.map((e) => e.computed.length));
  }

  showFigures() {
    const run = this.run;
    const known = run.evaluations.length;
    const parts = [`evaluation ${known} of ${this.columns}`, `${percent(run.reuse_ratio)} reused`];
    if (run.estimated_speedup != null && run.reused) parts.push(`${run.estimated_speedup.toFixed(2)}x (estimated)`);
    const head = element("strong", "", parts.join(" · "));
    const lines = [head];
    if (run.seconds_full != null) {
      const reuse = run.seconds_reuse == null ? "" : `, ${seconds(run.seconds_reuse)} with reuse`;
      const held = run.peak_bytes ? ` · ${bytes(run.peak_bytes)} held${run.in_ram ? ", partly in RAM" : ""}` : "";
      lines.push(`\n${seconds(run.seconds_full)} per full evaluation${reuse}${held}`);
    }
    if (run.inactive) lines.push(`\ninactive: ${run.inactive}`);
    this.figures.replaceChildren(...lines);
    this.canvas.setAttribute(
      "aria-label",
      `Map of ${this.blocks} blocks by ${known} evaluations, ${percent(run.reuse_ratio)} reused. Arrow keys read cells.`,
    );
    this.read();
  }

  draw() {
    if (!this.run || !this.canvas.clientWidth) return;
    const scale = 2 * (globalThis.devicePixelRatio || 1); // sharp when the graph is zoomed in
    const [width, height] = [this.canvas.clientWidth * scale, this.canvas.clientHeight * scale].map(Math.round);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(this.root);
    const colour = (name) => style.getPropertyValue(`--foresight-${name}`).trim();
    context.clearRect(0, 0, width, height);
    const [w, h] = [width / this.columns, height / this.blocks];
    const gap = Math.min(scale, w / 4, h / 4);
    const fill = (block, index, name, alpha) => {
      context.globalAlpha = alpha;
      context.fillStyle = colour(name);
      context.fillRect(index * w, height - (block + 1) * h, w - gap, h - gap);
    };
    this.run.evaluations.forEach((evaluation, index) => {
      for (let block = 0; block < evaluation.computed.length; block++) {
        const cell = cellOf(evaluation, block);
        if (!cell) continue;
        fill(block, index, cell.warmup ? "warmup" : "computed", 1);
        if (cell.near) fill(block, index, "close", cell.near);
        if (cell.share) fill(block, index, "reused", cell.share);
      }
    });
    context.globalAlpha = 1;
    if (this.cursor) {
      const [block, index] = this.cursor;
      context.lineWidth = 1.5 * scale;
      context.strokeStyle = colour("cursor");
      context.strokeRect(index * w, height - (block + 1) * h, w - gap, h - gap);
    }
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect(); // scaled with the graph's zoom, as the pointer is
    const index = Math.floor(((event.clientX - box.left) / box.width) * this.columns);
    const block = Math.floor((1 - (event.clientY - box.top) / box.height) * this.blocks);
    this.moveTo([block, index]);
  }

  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // the graph moves its selected nodes with the same keys
    this.moveTo(this.cursor ? [this.cursor[0] + step[0], this.cursor[1] + step[1]] : [0, 0]);
  }

  moveTo(cell) {
    const last = [this.blocks - 1, this.run.evaluations.length - 1];
    this.cursor = cell && cell.map((value, i) => Math.min(last[i], Math.max(0, value)));
    this.read();
    this.draw();
  }

  read() {
    const [block, index] = this.cursor ?? [];
    const evaluation = this.run.evaluations[index];
    const cell = evaluation && cellOf(evaluation, block);
    const text = cell ? `block ${block}, evaluation ${index}: ${cell.words}` : "";
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }
}

// ---- text of output nodes

class TextView {
  constructor(node) {
    this.node = node;
    this.root = element("pre", "foresight-text");
    this.root.tabIndex = 0;
  }

  show(output) {
    if (output?.text?.length) this.root.textContent = output.text.join("\n");
  }

  refresh() {
    this.show(app.nodeOutputs?.[this.node.id]); // after a change of tabs
  }
}

// ---- in the graph

function addView(node, View, height) {
  const view = new View(node);
  views.set(node, view);
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet" });
  link.href = new URL("./foresight.css", import.meta.url).href;
  link.addEventListener("load", () => view.refresh()); // its colours are known now
  const holder = element("div", "foresight-view", link, view.root); // nothing of ours in the page's head
  const widget = node.addDOMWidget("foresight_view", "foresight_view", holder, {
    serialize: false, // not in the prompt
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false; // not in the workflow
  widget.label = "";
  node.setSize(node.computeSize().map((least, i) => Math.max(least, node.size[i])));
  return view;
}

app.registerExtension({
  name: "foresight.map",

  setup() {
    api.addEventListener("foresight.run", ({ detail }) => {
      if (!merge(detail)) fetchRuns(); // this page opened in mid-run
      if (isHere(detail)) views.get(findNode(detail.node_id))?.refresh();
    });
    api.addEventListener("reconnected", fetchRuns); // events were lost
    new MutationObserver(() => showAll()).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });
    fetchRuns();
  },

  nodeCreated(node) {
    ready = true;
    if (node.comfyClass === "ForesightApply") addView(node, MapView, MAP_HEIGHT);
    const height = TEXT_HEIGHTS[node.comfyClass];
    if (height) {
      const view = addView(node, TextView, height);
      const before = node.onExecuted;
      node.onExecuted = function (output) {
        before?.call(this, output);
        view.show(output);
      };
    }
  },

  loadedGraphNode(node) {
    if (!views.has(node)) return; // a file made by an older version has a smaller node
    node.setSize(node.computeSize().map((least, i) => Math.max(least, node.size[i])));
  },

  afterConfigureGraph() {
    ready = true;
    fetchRuns();
    showAll();
  },
});
