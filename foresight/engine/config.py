"""User settings: every default and every limit of the nodes is read from here."""

import dataclasses
import math
from dataclasses import dataclass, field

METHODS = ("forecast", "paper")
CACHE_DEVICES = ("auto", "gpu", "cpu")
CACHE_KINDS = ("output", "residual")

AUTO_WARMUP = 0.15  # share of the run's steps (paper, section 4.1)
AUTO_WARMUP_MIN = 3  # two changes, one alone is a noisy reference; or a value, a slope and a measured error


def _limited(default, low, high, step):
    return field(default=default, metadata={"min": low, "max": high, "step": step})


@dataclass(frozen=True)
class ForesightConfig:
    """Settings of one node or one `apply_foresight`; shared by all runs, so it never changes.

    Attributes:
        warmup_steps: W, leading denoising steps that are computed in full; 0 means 15 % of the run's steps, at least 3,
            with the method "paper", and 3 with "forecast".
        threshold: gamma, scale on a block's reference change lambda ("paper") or on the error that leaving evaluations
            out may cause ("forecast"). Higher reuses more and drifts more; 0 turns reuse off.
        reuse_interval: R, every R-th evaluation after warmup is computed in full, beginning with the first; 1 turns
            reuse off. "forecast" chooses by itself when to compute and takes only the 1.
        start_percent: Share of sampling before which everything is computed.
        end_percent: Share of sampling after which everything is computed.
        cache_device: Where a stored hidden state waits between evaluations: "gpu" (the model's device), "cpu", "auto".
        cache_budget_gb: Memory that the stored features may take, in GiB; 0 lets the host choose.
        cache_kind: "output" hands out the stored hidden state, "residual" adds its change over the prefix to the input.
        sample_rows: Rows of a block output that the change is measured on, about, and a third of them at most; 0 takes
            every row (exact).
        method: "forecast" leaves out whole evaluations and forecasts their output, see `forecast.py`; "paper" reuses a
            prefix of blocks in them, see `policy.py`. The two before are for "paper" alone.

    Raises:
        ValueError: a value is outside its limits, or start_percent is not below end_percent.
    """

    warmup_steps: int = _limited(0, 0, 100, 1)
    threshold: float = _limited(0.5, 0.0, 2.0, 0.05)
    reuse_interval: int = _limited(2, 1, 8, 1)
    start_percent: float = _limited(0.0, 0.0, 1.0, 0.01)
    end_percent: float = _limited(1.0, 0.0, 1.0, 0.01)
    cache_device: str = field(default="auto", metadata={"options": CACHE_DEVICES})
    cache_budget_gb: float = _limited(0.0, 0.0, 1024.0, 0.1)
    cache_kind: str = field(default="output", metadata={"options": CACHE_KINDS})
    sample_rows: int = _limited(1024, 0, 1 << 20, 1)
    method: str = field(default="forecast", metadata={"options": METHODS})

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, limits = getattr(self, f.name), f.metadata
            if "options" in limits:
                if value not in limits["options"]:
                    raise ValueError(f"{f.name}={value!r}: must be one of {', '.join(limits['options'])}")
                continue
            kinds = (int,) if f.type is int else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
                raise ValueError(f"{f.name}={value!r}: must be {'a whole' if f.type is int else 'a finite'} number")
            if not limits["min"] <= value <= limits["max"]:
                raise ValueError(f"{f.name}={value}: must be between {limits['min']} and {limits['max']}")
        if self.start_percent >= self.end_percent:
            raise ValueError(f"start_percent={self.start_percent}: must be below end_percent={self.end_percent}")

    @classmethod
    def limits(cls, name: str) -> dict:
        """Default and limits of one setting, as keyword arguments for a widget.

        Default and either min, max, step or options.
        """
        f = next((f for f in dataclasses.fields(cls) if f.name == name), None)
        if f is None:
            raise ValueError(
                f"{name!r} is not a setting; the settings are {', '.join(f.name for f in dataclasses.fields(cls))}"
            )
        return {"default": f.default, **{k: list(v) if isinstance(v, tuple) else v for k, v in f.metadata.items()}}

    @property
    def off_reason(self) -> str | None:
        """Why these settings turn reuse off altogether, or None."""
        if self.threshold == 0:
            return "threshold is 0"
        if self.reuse_interval == 1:
            return "reuse_interval is 1"
        return None

    def warmup_of(self, steps: int) -> int:
        """W for a run of `steps` denoising steps."""
        automatic = AUTO_WARMUP_MIN if self.method == "forecast" else math.ceil(AUTO_WARMUP * steps)
        return self.warmup_steps or max(AUTO_WARMUP_MIN, automatic)
