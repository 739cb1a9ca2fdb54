// What the live map says, in words: pure functions of a run's record.

export const FORMAT = 3; // of a record, as in foresight/engine/stats.py

export const EMPTY = "What is left out shows here while the sampler runs.";

/** A time without an exponent. */
export function seconds(value) {
  if (value == null) return "?";
  if (value < 0.001) return `${(1000 * value).toFixed(3)} ms`;
  return `${value < 100 ? value.toPrecision(3) : value.toFixed(0)} s`;
}

export const bytes = (count) => (count >= 2 ** 29 ? `${(count / 2 ** 30).toFixed(2)} GiB` : `${(count / 2 ** 20).toFixed(1)} MiB`);
export const percent = (share) => `${Math.round(share * 100)} %`;

/** Why a record cannot be shown, or null: the server was updated while the page was open. */
export function unreadable(run) {
  if (run.format === FORMAT) return null;
  return `The server sends records of format ${run.format}, this page reads format ${FORMAT}. Reload the page.`;
}

/** What a run means to compute, and when it is over what became of that; null where there is no plan. */
export function planOf(run) {
  if (run.planned == null) return null;
  const plan = `plan: ${run.planned} of ${run.steps} steps computed, ${(run.steps / Math.max(1, run.planned)).toFixed(2)}x`;
  if (!run.done) return plan;
  const computed = run.evaluations.filter((e) => !e.reused.some(Boolean)).length;
  const known = run.evaluations.length;
  return `${plan}; it became ${known === run.steps ? computed : `${computed} of ${known} evaluations`}`;
}

/** The lines under the map, the first of them in bold. */
export function figuresOf(run, columns) {
  const head = [`evaluation ${run.evaluations.length} of ${columns}`, `${percent(run.reuse_ratio)} reused`];
  if (run.estimated_speedup != null && run.reused) head.push(`${run.estimated_speedup.toFixed(2)}x (estimated)`);
  const lines = [head.join(" · ")];
  const plan = planOf(run);
  if (plan) lines.push(plan);
  if (run.seconds_full != null) {
    const reuse = run.seconds_reuse == null ? "" : `, ${seconds(run.seconds_reuse)} with reuse`;
    const held = run.peak_bytes ? ` · ${bytes(run.peak_bytes)} held${run.in_ram ? ", partly in RAM" : ""}` : "";
    lines.push(`${seconds(run.seconds_full)} per full evaluation${reuse}${held}`);
  }
  if (run.restarts) lines.push(`sampler started again ${run.restarts === 1 ? "once" : `${run.restarts} times`} with better outputs`);
  if (run.uncorrected) lines.push(`forecasts not corrected: ${run.uncorrected}`);
  if (run.inactive) lines.push(`inactive: ${run.inactive}`);
  return lines;
}
