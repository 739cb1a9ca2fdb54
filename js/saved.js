// Workflows that were saved with other widgets on the Foresight node: their values are read in the order of today.
import { app } from "../../scripts/app.js";

const METHODS = ["forecast", "paper"];
let said = false;

/** The values of a node that was saved before `method` came first, in today's order; others as they are. */
export function inTodaysOrder(values) {
  if (!Array.isArray(values) || typeof values[0] !== "number" || values.length < 7) return values;
  const [warmup, threshold, interval, start, end, device, budget, method = "paper"] = values;
  if (!METHODS.includes(method)) return values;
  // forecast took no interval but 1, off; now it would keep to what stands there
  const kept = method === "paper" || interval === 1 ? interval : 0;
  return [method, threshold, warmup, kept, start, end, device, budget, false];
}

function sayOnce() {
  if (said) return;
  said = true;
  app.extensionManager?.toast?.add({
    severity: "info",
    summary: "Foresight",
    detail: "This workflow was saved with an older Foresight. Its settings were taken over into the new order; save it to keep them.",
    life: 10000,
  });
}

/** Make every node of this type read what older versions saved. */
export function readOlderFiles(nodeType) {
  const configure = nodeType.prototype.configure;
  nodeType.prototype.configure = function (info) {
    const values = inTodaysOrder(info?.widgets_values);
    if (values === info?.widgets_values) return configure.call(this, info);
    sayOnce();
    const { widgets_values_named: _, ...rest } = info; // by name it says what it said then
    return configure.call(this, { ...rest, widgets_values: values });
  };
}
