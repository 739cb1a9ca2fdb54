// The records of sampler runs: what the server told of them, and which node each belongs to.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const KEPT = 64; // runs, of all workflows
const NO_ID = /^[0-]*$/; // what the frontend gives every workflow that it makes of a prompt in API format

const runs = new Map(); // run number -> record as of GET /foresight/runs
const queued = new Set(); // prompts of this page
let ready = false; // before the first graph, even asking for it is an error

/** Say that there is a graph to ask for from now on. */
export function graphIsThere() {
  ready = true;
}

export const rootGraph = () => (ready ? (app.rootGraph ?? app.graph) : undefined);

/** The node of an execution id, "7", or "3:7" for node 7 in the subgraph of node 3; undefined where there is none. */
export function findNode(id) {
  let graph = rootGraph();
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.nodes?.find((n) => String(n.id) === part);
    graph = node?.subgraph;
  }
  return node;
}

/** Note that a prompt of this page begins; the server tells nobody else. */
export function note(prompt) {
  queued.add(prompt);
}

/** Whether a record is of the workflow that is open. Of one without an id, prompts of this page are. */
export function isHere(record) {
  if (record.workflow_id == null || record.workflow_id !== rootGraph()?.id) return false;
  return !NO_ID.test(record.workflow_id) || queued.has(record.prompt_id);
}

/** Whether this page has queued it, before it was loaded anew perhaps: on a server with several users others do too. */
const isOwn = (record) =>
  queued.has(record.prompt_id) || (record.client_id != null && record.client_id === api.clientId);

/** The newest prompt's runs for a node, by run number: this page's if it has any, since all have a template's id. */
export function runsOf(node) {
  const here = [...runs.values()].filter((r) => isHere(r) && r.node_id != null && findNode(r.node_id) === node);
  const own = here.filter(isOwn);
  const mine = own.length ? own : here;
  mine.sort((a, b) => a.run - b.run);
  return mine.filter((r) => r.prompt_id === mine.at(-1).prompt_id);
}

function keep(record) {
  runs.set(record.run, record);
  if (runs.size > KEPT) runs.delete(Math.min(...runs.keys()));
}

/** Merge one event: its rows replace what is known from `first` on. False when rows before them are missing. */
export function merge(message) {
  const known = runs.get(message.run)?.evaluations ?? [];
  const complete = message.first <= known.length;
  keep({ ...message, evaluations: [...known.slice(0, message.first), ...message.evaluations] });
  return complete;
}

/** Fetch all records that the server has. False when it does not answer. */
export async function fetchRuns() {
  const open = [...runs.values()].filter((r) => !r.done);
  let records;
  try {
    const response = await api.fetchApi("/foresight/runs");
    if (!response.ok) return false;
    records = await response.json();
  } catch {
    return false; // nobody is there, or somebody else (a proxy's page)
  }
  for (const record of records) {
    const known = runs.get(record.run); // events may have overtaken the answer
    const older = known && (record.evaluations.length < known.evaluations.length || (known.done && !record.done));
    if (!older) keep(record);
  }
  for (const { run } of open.filter((r) => !records.some((record) => record.run === r.run))) {
    if (runs.get(run)?.done === false) keep({ ...runs.get(run), done: true, broken_off: true }); // the server is another
  }
  return true;
}
