// In the classic renderer a widget's element has the pointer to itself; what it has no use for is the graph's.
import { app } from "../../scripts/app.js";

/** Whether an element under the pointer, out to `holder`, has more than it shows, so that the wheel moves that. */
function canScroll(holder, target) {
  for (let e = target; e && e !== holder; e = e.parentElement) {
    if (e.scrollHeight > e.clientHeight && getComputedStyle(e).overflowY === "auto") return true;
  }
  return false;
}

/** Let the wheel zoom the graph and the middle button move it over this element too. Nodes 2.0 does so by itself. */
export function passToGraph(holder) {
  const pass = (kind, method, wanted) =>
    holder.addEventListener(kind, (event) => {
      if (!globalThis.LiteGraph?.vueNodesMode && wanted(event)) app.canvas[method](event);
    });
  pass("wheel", "processMouseWheel", (event) => event.ctrlKey || !canScroll(holder, event.target));
  pass("pointerdown", "processMouseDown", (event) => event.button === 1);
  pass("pointermove", "processMouseMove", (event) => event.buttons & 4);
  pass("pointerup", "processMouseUp", (event) => event.button === 1);
}
