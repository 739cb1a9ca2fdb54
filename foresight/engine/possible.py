"""What can be left out: in a run at all, as far as its schedule tells, and in its next evaluation."""

from .policy import Decision, Policy
from .schedule import Phase, Schedule
from .stats import Evaluation, Kind

APART = (  # said at the end of a run
    "no part of the video came twice in a row, or its latent did not go on from step to step (moving context windows, "
    "two latents, a mask that keeps everything, a hook that always changes?)"
)
_KINDS: dict[Phase, Kind] = {"warmup": "warmup", "before": "outside", "after": "plain"}


def most_reuse(policy: Policy, schedule: Schedule) -> int | None:
    """How many steps can be left out at the most; None if nobody says how many there are."""
    return None if schedule.steps is None else policy.most_reuse(schedule.steps, schedule.warmup)


def why_nothing(policy: Policy, schedule: Schedule) -> str | None:
    """Why nothing can ever be left out in a run, or None."""
    reason, steps, warmup = policy.why_never(), schedule.steps, schedule.warmup
    if schedule.rises:
        return "noise levels rise in this run (unsampling or a restart)"
    if reason is None and most_reuse(policy, schedule) == 0:
        if warmup is not None and warmup >= steps:
            why = "all of them are warmup"
        elif not any(place.may_reuse for place in schedule.outlook()[:-1]):
            why = f"{_are(warmup)} warmup, and start_percent and end_percent leave out the rest"
        else:
            why = f"{_are(warmup)} warmup, and {policy.rest}"
        reason = f"at most 0 of {steps} steps can be reused: {why}"
    return reason


def _are(count: int | None) -> str:
    return f"{count} is" if count == 1 else f"{count} are"


def decide(policy: Policy, schedule: Schedule, row: Evaluation) -> Decision:
    """Ask the policy about the next evaluation, and write into its record what kind it is, and where it stands."""
    place = schedule.place(row.level)
    row.share, row.kind = place.share, _KINDS.get(place.phase, "full")
    if schedule.has_news:
        policy.steps = schedule.length
        policy.outlook(schedule.outlook())
    if place.phase == "after":
        policy.drop()
        return Decision(compute=True)
    decision = policy.decide(place)
    row.expected = decision.expected
    if place.may_reuse and not decision.compute:
        row.kind = "reuse"
    return decision
