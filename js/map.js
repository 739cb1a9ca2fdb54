// The live map's view: tabs of runs, the map of blocks by evaluations or the strip of evaluations, and its figures.
import { element } from "./element.js";
import { presetsOf } from "./presets.js";
import { findNode, runsOf } from "./runs.js";
import { LEGEND as STRIP_LEGEND, columnsOf, drawStrip } from "./strip.js";
import { EMPTY, evaluationOf, figuresOf, isStrip, percent, unreadable } from "./words.js";

const SHOWN = ["method", "threshold"]; // widgets that decide what a run is like
const LEGEND = { warmup: "warmup", computed: "computed", close: "close to reuse", reused: "reused" };

/** What a cell shows: reused share 0..1, nearness to reuse 0..1, and the words for it. */
function cellOf(evaluation, block) {
  const reused = evaluation.reused[block] ?? 0;
  const calls = reused + (evaluation.computed[block] ?? 0);
  if (!calls) return null;
  const ratio = evaluation.ratio[block];
  // at 1 it could have been left out, 3 is far off; foresight/report/plot.py shades alike
  const near = ratio == null || evaluation.kind === "warmup" ? 0 : Math.min(1, Math.max(0, (3 - ratio) / 2));
  let words = reused === calls ? "reused" : reused ? `reused in ${reused} of ${calls} calls` : "computed";
  if (evaluation.kind === "warmup") words = "computed (warmup)";
  else if (ratio != null) words += `, ${ratio.toPrecision(2)} of the limit`;
  return { share: reused / calls, near, warmup: evaluation.kind === "warmup", words };
}

/** The values of these widgets of a node, but for those that another node gives. */
function valuesOf(node, names) {
  const linked = (name) => node.inputs?.some((input) => input.widget?.name === name && input.link != null);
  const widgets = (node.widgets ?? []).filter((w) => names.includes(w.name) && !linked(w.name));
  return Object.fromEntries(widgets.map((w) => [w.name, w.value]));
}

/** Whether a colour, as getComputedStyle gives it, is nearer to white than to black. */
export function isLight(colour) {
  const [r, g, b] = (colour.match(/[\d.]+/g) ?? []).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b > 127;
}

export class MapView {
  constructor(node) {
    this.node = node;
    this.chosen = null; // number of the run whose tab was clicked
    this.cursor = null; // [block, evaluation]
    this.tabs = element("div", "foresight-tabs");
    this.tabs.setAttribute("role", "tablist");
    this.tabs.setAttribute("aria-label", "Runs");
    this.canvas = element("canvas", "");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.figures = element("div", "foresight-figures");
    this.readout = element("div", "foresight-readout");
    this.readout.setAttribute("aria-live", "polite");
    this.legend = element("div", "foresight-legend");
    this.empty = element("div", "foresight-empty", EMPTY);
    this.presets = presetsOf(node);
    const widgets = (node.widgets ?? []).filter((w) => SHOWN.includes(w.name));
    for (const [owner, name] of [...widgets.map((w) => [w, "callback"]), [node, "onConnectionsChange"]]) {
      const before = owner[name];
      owner[name] = (...args) => {
        const result = before?.apply(owner, args);
        this.refresh();
        return result;
      };
    }
    this.root = element("div", "foresight-map", this.presets.row, this.empty);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    for (const leaves of ["pointerleave", "blur"]) this.canvas.addEventListener(leaves, () => this.moveTo(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  refresh() {
    // no class of the page says this in every version of the frontend; light text stands on a dark ground in all
    this.root.classList.toggle("foresight-dark", isLight(getComputedStyle(this.root).color));
    this.presets.show();
    this.runs = runsOf(this.node);
    const strange = this.runs.map(unreadable).find(Boolean);
    if (!this.runs.length || strange) {
      this.run = null;
      this.empty.textContent = strange ?? EMPTY;
      // what is there already stays, and keeps the focus
      if (!this.root.contains(this.empty)) this.root.replaceChildren(this.presets.row, this.empty);
      return;
    }
    const newest = this.runs.at(-1);
    const chosen = this.runs.find((r) => r.run === this.chosen);
    if (!chosen) this.chosen = null;
    const shown = this.run?.run;
    this.run = chosen ?? newest;
    if (this.run.run !== shown) this.cursor = null;
    if (this.root.contains(this.empty)) {
      this.root.replaceChildren(this.presets.row, this.tabs, this.canvas, this.figures, this.readout, this.legend);
    }
    this.showTabs();
    this.showLegend();
    this.showFigures();
    this.read();
    this.draw();
  }

  showLegend() {
    const wanted = isStrip(this.run) ? STRIP_LEGEND : LEGEND;
    if (this.legend.shown === wanted) return;
    this.legend.shown = wanted;
    this.legend.replaceChildren();
    for (const [name, label] of Object.entries(wanted)) {
      const entry = element("span", "", label);
      entry.style.setProperty("--colour", `var(--foresight-${name})`);
      this.legend.append(entry);
    }
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
    const count = isStrip(this.run) ? columnsOf(this.run).length : this.run.evaluations.length;
    return this.run.done && !this.run.broken_off ? count : Math.max(count, this.run.steps ?? 0);
  }

  get blocks() {
    return Math.max(1, ...this.run.evaluations.map((e) => e.computed.length));
  }

  showFigures() {
    const run = this.run;
    const known = run.evaluations.length;
    const [head, ...lines] = figuresOf(run, this.columns, valuesOf(this.node, SHOWN));
    this.figures.replaceChildren(element("strong", "", head), ...lines.map((line) => `\n${line}`));
    const what = isStrip(run) ? `Strip of ${known} evaluations` : `Map of ${this.blocks} blocks by ${known} evaluations`;
    this.canvas.setAttribute("aria-label", `${what}, ${percent(run.reuse_ratio)} left out. Arrow keys read it.`);
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
    if (isStrip(this.run)) {
      return drawStrip(context, this.run, { width, height, scale, count: this.columns, colour, cursor: this.cursor?.[1] });
    }
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
    if (!this.run) return;
    const last = [this.blocks - 1, this.run.evaluations.length - 1];
    this.cursor = cell && cell.map((value, i) => Math.min(last[i], Math.max(0, value)));
    this.read();
    this.draw();
  }

  read() {
    const [block, index] = this.cursor ?? [];
    const evaluation = this.run.evaluations[index];
    let text = "";
    if (evaluation && isStrip(this.run)) text = `evaluation ${index}: ${evaluationOf(evaluation, this.run.parts)}`;
    else if (evaluation) {
      const cell = cellOf(evaluation, block);
      text = cell ? `block ${block}, evaluation ${index}: ${cell.words}` : "";
    }
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }
}
