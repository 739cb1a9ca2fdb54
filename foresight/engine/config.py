"""User settings: every default and every limit of the nodes is read from here."""

import dataclasses
import math
from dataclasses import asdict, dataclass, field
from typing import ClassVar

CACHE_DEVICES = ("auto", "gpu", "cpu")


def limited(default: float, low: float, high: float, step: float):
    """A numeric setting with its limits."""
    return field(default=default, metadata={"min": low, "max": high, "step": step})


def chosen(default: str, options: tuple[str, ...]):
    """A setting that is one of several words."""
    return field(default=default, metadata={"options": options})


@dataclass(frozen=True)
class Config:
    """The settings that every method has. A method's own type says which method it is, and may add settings.

    One config serves all runs of a node or of an `apply_foresight`, so it never changes.

    Attributes:
        name: The method, as nodes and records call it.
        unused: What the record says when a run of this method left nothing out.
        by_block: The method looks at the blocks of a model, so that the model has to be known. Else it takes any model,
            and what the record counts is outputs.
        warmup_steps: W, leading denoising steps that are computed in full; 0 lets the method choose.
        threshold: gamma. Higher leaves more out and drifts more; 0 turns the method off, bit for bit.
        reuse_interval: R, at least every R-th evaluation is computed in full; 0 lets the method choose, 1 turns it off.
        start_percent: Share of sampling before which everything is computed.
        end_percent: Share of sampling after which everything is computed.
        cache_device: Where stored tensors wait between evaluations: "gpu" (the model's device), "cpu" (RAM), or "auto":
            on the model's device where they fit into the budget, else in RAM.
        cache_budget_gb: Memory that stored tensors may take, in GiB; 0 lets the host choose.
        validate: What is left out is computed as well, for the record alone, which then says by how much it was off.
            The video is the same; nothing is saved.

    Raises:
        ValueError: a value is outside its limits, or start_percent is not below end_percent.
    """

    name: ClassVar[str]
    unused: ClassVar[str]
    by_block: ClassVar[bool] = False

    warmup_steps: int = limited(0, 0, 100, 1)
    threshold: float = limited(0.5, 0.0, 32.0, 0.05)
    reuse_interval: int = limited(0, 0, 8, 1)
    start_percent: float = limited(0.0, 0.0, 1.0, 0.01)
    end_percent: float = limited(1.0, 0.0, 1.0, 0.01)
    cache_device: str = chosen("auto", CACHE_DEVICES)
    cache_budget_gb: float = limited(0.0, 0.0, 1024.0, 0.1)
    validate: bool = False

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, limits = getattr(self, f.name), f.metadata
            if type(f.default) is bool:
                if not isinstance(value, bool):
                    raise ValueError(f"{f.name}={value!r}: must be True or False")
                continue
            if "options" in limits:
                if value not in limits["options"]:
                    raise ValueError(f"{f.name}={value!r}: must be one of {', '.join(limits['options'])}")
                continue
            whole = type(f.default) is int
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"{f.name}={value!r}: must be {'a whole' if whole else 'a finite'} number")
            if not limits["min"] <= value <= limits["max"]:
                raise ValueError(f"{f.name}={value}: must be between {limits['min']} and {limits['max']}")
        if self.start_percent >= self.end_percent:
            raise ValueError(f"start_percent={self.start_percent}: must be below end_percent={self.end_percent}")

    @classmethod
    def limits(cls, name: str) -> dict:
        """The default and limits of one setting: `default` with `min`, `max`, `step`, or with `options`."""
        f = next((f for f in dataclasses.fields(cls) if f.name == name), None)
        if f is None:
            raise ValueError(
                f"{name!r} is not a setting; the settings are {', '.join(f.name for f in dataclasses.fields(cls))}"
            )
        return {"default": f.default, **{k: list(v) if isinstance(v, tuple) else v for k, v in f.metadata.items()}}

    @property
    def off_reason(self) -> str | None:
        """Why these settings turn the method off altogether, or None."""
        if self.threshold == 0:
            return "threshold is 0"
        if self.reuse_interval == 1:
            return "reuse_interval is 1"
        return None

    def warmup_of(self, steps: int | None) -> int | None:
        """W for a run of `steps` denoising steps; None where it depends on them and they are not known."""
        return self.warmup_steps or self.automatic_warmup(steps)

    def automatic_warmup(self, steps: int | None) -> int | None:
        """W where the user leaves it to the method."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        """Settings as JSON types, with the name of the method."""
        return {"method": self.name, **asdict(self)}
