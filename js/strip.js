// The picture of a run whose method takes whole evaluations: one column each, as foresight/report/strip.py draws it.
import { aheadOf, errorsOf } from "./words.js";

export const LEGEND = { computed: "computed", reused: "left out", close: "predicted error (line: limit)", cursor: "real error" };

const MOST = 2; // errors are drawn up to this many times the limit
const LOWEST = 0.08; // height of a column that covers next to nothing, so that it can be seen
const [ERRORS, GAP] = [0.32, 0.08]; // shares of the height
const FAINT = 0.35; // what is planned

/** The columns: the evaluations, and what the plan has still to come. */
export function columnsOf(run) {
  const ahead = aheadOf(run);
  const highest = Math.max(0, ...[...run.evaluations, ...ahead].map((x) => x.share ?? 0));
  const height = (share) => (share == null || !highest ? 1 : Math.max(LOWEST, share / highest));
  return [
    ...run.evaluations.map((e) => ({ height: height(e.share), left: e.reused.some(Boolean), alpha: 1, ...errorsOf(e) })),
    ...ahead.map((step) => ({ height: height(step.share), left: !step.computes, alpha: FAINT, predicted: null, real: null })),
  ];
}

/** Draw a run into a canvas of this size; `count` columns have room, `cursor` is the index of one, or null. */
export function drawStrip(context, run, { width, height, scale, count, colour, cursor }) {
  const columns = columnsOf(run);
  const w = width / Math.max(count, columns.length, 1);
  const gap = Math.min(scale, w / 4);
  const errors = height * ERRORS;
  const top = height * (1 - ERRORS - GAP);
  const up = (value) => (errors * Math.min(value, MOST)) / MOST;
  columns.forEach((column, index) => {
    context.globalAlpha = column.alpha;
    context.fillStyle = colour(column.left ? "reused" : "computed");
    context.fillRect(index * w, top * (1 - column.height), w - gap, top * column.height);
    context.globalAlpha = 1;
    if (column.predicted != null) {
      context.fillStyle = colour("close");
      context.fillRect(index * w, height - up(column.predicted), w - gap, up(column.predicted));
    }
    if (column.real != null) {
      context.fillStyle = colour("cursor");
      context.beginPath();
      context.arc(index * w + (w - gap) / 2, height - up(column.real), Math.min(w / 3, 2 * scale), 0, 2 * Math.PI);
      context.fill();
    }
  });
  context.fillStyle = colour("cursor");
  context.globalAlpha = 0.6;
  context.fillRect(0, height - up(1), width, Math.max(1, scale / 2));
  context.globalAlpha = 1;
  if (cursor != null) {
    context.lineWidth = 1.5 * scale;
    context.strokeStyle = colour("cursor");
    context.strokeRect(cursor * w, 0, w - gap, height);
  }
}
