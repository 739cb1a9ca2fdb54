"""Whether another sampler goes on from the noisy latent of a run, as the prompt says: Wan 2.2 samples with two models.

Then nothing has to be computed for the sake of the run's end: the next stage computes its first step, as if it were one
in the middle of a run. Nothing else goes from one stage to the next. Between the outputs of two models there is no
slope, and what was forecast of the one's outputs can't be corrected by the other's.
"""

from comfy_execution.graph_utils import is_link

from .prompts import executing

SAMPLER = "KSamplerAdvanced"
ALIKE = "steps", "scheduler", "sampler_name"  # some samplers have other levels at the same step
ENOUGH = 2  # steps that the next run has at least


def whole_of(last: float) -> int | None:
    """Steps of both stages together, where the run under way, whose last level this is, is the first of two."""
    running = executing()
    return following(running.nodes and running.nodes(), running.node_id) if last > 0 else None


def following(nodes, sampler_id: str | None) -> int | None:
    """Steps of the whole, if a sampler's latent goes to a second stage and nowhere else; else None."""
    if nodes is None or sampler_id is None or not nodes.has_node(sampler_id):
        return None
    if nodes.get_parent_node_id(sampler_id) is not None:
        return None  # a node has expanded to it, and what takes its latent in the end is in no node's inputs
    users = [
        (name, nodes.get_node(node_id))
        for node_id in nodes.all_node_ids()
        for name, value in nodes.get_node(node_id).get("inputs", {}).items()
        if is_link(value) and value[0] == sampler_id
    ]
    this = nodes.get_node(sampler_id)
    goes_on = len(users) == 1 and users[0][0] == "latent_image" and _goes_on(this, users[0][1])
    return this["inputs"]["steps"] if goes_on else None


def _goes_on(first: dict, second: dict) -> bool:
    """Whether the second sampler begins where the first ends; links to numbers are not followed."""
    if {first.get("class_type"), second.get("class_type")} != {SAMPLER}:
        return False
    one, other = first["inputs"], second["inputs"]
    steps = one.get("steps"), one.get("end_at_step"), other.get("start_at_step"), other.get("end_at_step")
    if not all(isinstance(n, int) for n in steps) or any(one.get(name) != other.get(name) for name in ALIKE):
        return False
    whole, end, start, last = steps
    noise = one.get("return_with_leftover_noise"), other.get("add_noise")
    return noise == ("enable", "disable") and start == end <= min(whole, last) - ENOUGH
