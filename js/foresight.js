// The live map on the Foresight node, and the text of the report nodes. Shows what the server says; decides nothing.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { element } from "./element.js";
import { MapView } from "./map.js";
import { passToGraph } from "./pointer.js";
import { fetchRuns, findNode, graphIsThere, isHere, merge, note, rootGraph } from "./runs.js";
import { readOlderFiles } from "./saved.js";

const TEXT_HEIGHTS = { ForesightReport: 250, ForesightCompare: 50, ForesightSpeedup: 40 };
const WIDTHS = { ForesightApply: 380, ForesightReport: 440 }; // else figures need more lines, and a table is cut
const MAP_HEIGHT = 230;

const views = new WeakMap(); // node -> MapView or TextView

/**
 * Put a node's view where the frontend shows that of another: undo makes all nodes anew under their old ids, and Nodes
 * 2.0 goes on showing what the ones before had put there.
 */
function mount(node, view) {
  if (view.holder.isConnected || node.graph !== app.canvas?.graph) return;
  document.querySelector(`[data-node-id="${node.id}"] .foresight-view`)?.replaceWith(view.holder);
}

function showAll(graph = rootGraph()) {
  for (const node of graph?.nodes ?? []) {
    const view = views.get(node);
    if (view) {
      mount(node, view);
      view.refresh();
    }
    if (node.subgraph) showAll(node.subgraph);
  }
}

async function update() {
  if (await fetchRuns()) showAll();
}

class TextView {
  constructor(node) {
    this.node = node;
    this.root = element("pre", "foresight-text");
    this.root.tabIndex = 0;
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.key.toLowerCase() !== "a" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation(); // the graph selects all nodes with the same keys
    getSelection().selectAllChildren(this.root);
  }

  show(output) {
    if (output?.text?.length) this.root.textContent = output.text.join("\n");
  }

  refresh() {
    const { graph, id } = this.node;
    this.show(app.nodeOutputs?.[graph === rootGraph() ? id : `${graph?.id}:${id}`]); // after a change of tabs
  }
}

function addView(node, View, height) {
  const view = new View(node);
  views.set(node, view);
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet" });
  link.href = new URL("./foresight.css", import.meta.url).href;
  link.addEventListener("load", () => view.refresh()); // its colours are known now
  view.holder = element("div", "foresight-view", link, view.root); // nothing of ours in the page's head
  passToGraph(view.holder);
  const widget = node.addDOMWidget("foresight_view", "foresight_view", view.holder, {
    serialize: false, // not in the prompt
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false; // not in the workflow
  widget.label = "";
  const least = [WIDTHS[node.comfyClass] ?? 0, 0];
  node.setSize(node.computeSize().map((size, i) => Math.max(size, node.size[i], least[i])));
  return view;
}

app.registerExtension({
  name: "foresight.map",

  setup() {
    api.addEventListener("foresight.run", ({ detail }) => {
      if (!merge(detail)) update(); // this page opened in mid-run
      if (isHere(detail)) views.get(findNode(detail.node_id))?.refresh();
    });
    api.addEventListener("execution_start", ({ detail }) => note(detail.prompt_id));
    api.addEventListener("reconnected", update); // events were lost
    const themed = new MutationObserver(() => showAll()); // a change of theme
    for (const place of [document.documentElement, document.body]) {
      themed.observe(place, { attributes: true, attributeFilter: ["class", "style"] });
    }
    update();
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name === "ForesightApply") readOlderFiles(nodeType);
  },

  nodeCreated(node) {
    graphIsThere();
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
    graphIsThere();
    update();
    showAll();
    setTimeout(showAll); // when the page has drawn what is new
  },
});
