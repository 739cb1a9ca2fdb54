"""What can be left out in a run at all, as far as its schedule tells."""

from .policy import Policy
from .schedule import Schedule


def most_reuse(policy: Policy, schedule: Schedule) -> int | None:
    """How many steps can be left out at the most; None if nobody says how many there are."""
    return None if schedule.steps is None else policy.most_reuse(schedule.steps, schedule.warmup)


def why_nothing(policy: Policy, schedule: Schedule) -> str | None:
    """Why nothing can ever be left out in a run, or None."""
    reason, steps, warmup = policy.why_never(), schedule.steps, schedule.warmup
    if schedule.rises:
        return "noise levels rise in this run (unsampling or a restart)"
    if reason is None and most_reuse(policy, schedule) == 0 and policy.resources.stage.before is None:
        reason = f"at most 0 of {steps} steps can be reused: {warmup} are warmup, and {policy.rest}"
    return reason
