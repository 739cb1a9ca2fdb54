// What the live map says, in words: pure functions of a run's record.

export const FORMAT = 4; // of a record, as in foresight/engine/stats.py

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
  const until = run.broken_off ? " until it was stopped" : "";
  return `${plan}; it became ${known === run.steps ? computed : `${computed} of ${known} evaluations${until}`}`;
}

/** Whether the run's method takes whole evaluations, so that a strip shows it. */
export const isStrip = (run) => run.counted === "outputs";

/** Predicted and real error of an evaluation's forecast over the limit, null where they are not known. */
export function errorsOf(evaluation) {
  const predicted = evaluation.ratio[0] ?? null;
  const known = predicted != null && evaluation.expected && evaluation.missed != null;
  return { predicted, real: known ? (predicted * evaluation.missed) / evaluation.expected : null };
}

const off = (value) => `${(100 * value).toPrecision(2)} %`;

/** The largest error of each part of the latent (video, audio) in brackets; "" where it is one, or where not all are known. */
function partsOf(parts, evaluations) {
  if (!evaluations.length || evaluations.some((e) => !e.missed_parts.length)) return "";
  return ` (${parts.map((name, i) => `${name} ${off(Math.max(...evaluations.map((e) => e.missed_parts[i])))}`).join(", ")})`;
}

/** What an evaluation of a strip was, for the one line under it; `parts` are the names of the latent's. */
export function evaluationOf(evaluation, parts) {
  const left = evaluation.reused.some(Boolean);
  const words = [left ? "left out" : evaluation.kind === "warmup" ? "computed (warmup)" : "computed"];
  if (evaluation.share != null) words.push(`${(100 * evaluation.share).toFixed(1)} % of the way`);
  const { predicted } = errorsOf(evaluation);
  if (predicted != null) words.push(`${predicted.toPrecision(2)} of the limit`);
  if (evaluation.expected != null) words.push(`error ${off(evaluation.expected)} predicted`);
  if (evaluation.missed != null) words.push(`${off(evaluation.missed)} real${partsOf(parts, [evaluation])}`);
  return words.join(", ");
}

/** The steps of the plan that a run has not come to. */
export function aheadOf(run) {
  if (run.inactive || run.done || !run.outlook) return [];
  const count = run.evaluations.length;
  const reached = run.evaluations.at(-1)?.level;
  return run.outlook.filter((step, k) => (step.level == null || reached == null ? k >= count : step.level < reached * (1 - 1e-4)));
}

/** What the node says now and this run was not made with, in words; "" where that is the same. */
export function otherSettings(config, now) {
  const other = Object.keys(now).filter((name) => config[name] != null && now[name] != null && now[name] !== config[name]);
  const list = (values) => other.map((name) => (name === "method" ? values[name] : `${name} ${values[name]}`)).join(", ");
  return other.length ? `of a run with ${list(config)}; the node says ${list(now)} now` : "";
}

/** The lines under the map, the first of them in bold. */
export function figuresOf(run, columns, now = {}) {
  const head = [`evaluation ${run.evaluations.length} of ${columns}`, `${percent(run.reuse_ratio)} left out`];
  const speedup = run.config?.validate ? "without validate" : "estimated";
  if (run.estimated_speedup != null && run.reused) head.push(`${run.estimated_speedup.toFixed(2)}x (${speedup})`);
  if (run.broken_off) head.push("stopped");
  const lines = [head.join(" · ")];
  const other = otherSettings(run.config ?? {}, now);
  if (other) lines.push(other);
  const plan = planOf(run);
  if (plan) lines.push(plan);
  if (run.seconds_full != null) {
    const reuse = run.seconds_reuse == null ? "" : `, ${seconds(run.seconds_reuse)} with reuse`;
    const held = run.peak_bytes ? ` · ${bytes(run.peak_bytes)} held${run.in_ram ? ", partly in RAM" : ""}` : "";
    lines.push(`${seconds(run.seconds_full)} per full evaluation${reuse}${held}`);
  }
  const missed = run.evaluations.filter((e) => e.missed != null && e.reused.some(Boolean));
  const most = off(Math.max(...missed.map((e) => e.missed)));
  if (missed.length) lines.push(`what was left out is off by ${most} of the noise at most${partsOf(run.parts, missed)}`);
  if (run.restarts) lines.push(`sampler started again ${run.restarts === 1 ? "once" : `${run.restarts} times`} with better outputs`);
  if (run.taken_back) lines.push(`${run.taken_back} computed again: what was left out before was not worth it`);
  if (run.uncorrected) lines.push(`forecasts not corrected: ${run.uncorrected}`);
  if (run.inactive) lines.push(`inactive: ${run.inactive}`);
  return lines;
}
