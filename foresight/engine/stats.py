"""What a run did: a block x evaluation table, measured times and the figures that follow from them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from .config import Config
from .schedule import Place
from .tensors import format_bytes

FORMAT = 4  # of `RunStats.to_dict`; 3 counted blocks in every method and said nothing of errors

Kind = Literal["warmup", "outside", "full", "reuse", "plain"]


def format_seconds(seconds: float | None) -> str:
    """A time for people, in three figures at the most below 100 s and without an exponent."""
    if seconds is None:
        return "?"
    if seconds < 1e-3:
        return f"{1000 * seconds:.3f} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


@dataclass
class Evaluation:
    """One evaluation of the model by the sampler.

    Attributes:
        kind: "warmup", "full" or "reuse" by schedule; "outside" before start_percent; "plain" after end_percent or when
            inactive.
        level: Noise level (the host's sigma or timestep), None where the host gives none.
        seconds: Wall time until the next evaluation began, None if unknown.
        computed: Block calls computed, per block; one call is one block for one stream.
        reused: Block calls reused, per block.
        ratio: delta / (gamma * lambda) per block, the largest over the streams (with forecasts: the error of leaving
            it out too, over what computing has to save); None where nothing was measured.
        share: Share of the way from noise to video that this step covers; None where it is not known.
        expected: Error that a forecast of the output was taken to have, in units of the noise; None where there is no
            such figure.
        missed: Error that it really had; of what was left out it is known where the run validates. Of a latent that has
            several parts, the worst one's.
        missed_parts: That of each part, in the order of `RunStats.parts`; empty where the latent has one, or where the
            parts' errors are not all known.
    """

    kind: Kind
    level: float | None = None
    seconds: float | None = None
    computed: list[int] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    ratio: list[float | None] = field(default_factory=list)
    share: float | None = None
    expected: float | None = None
    missed: float | None = None
    missed_parts: list[float] = field(default_factory=list)

    def count(self, block: int, reused: bool, calls: int, ratio: float | None) -> None:
        """Add `calls` calls of one block."""
        while len(self.computed) <= block:
            self.computed.append(0)
            self.reused.append(0)
            self.ratio.append(None)
        (self.reused if reused else self.computed)[block] += calls
        if ratio is not None:
            self.ratio[block] = ratio if self.ratio[block] is None else max(ratio, self.ratio[block])

    def count_all(self, blocks: int, calls: int) -> None:
        """Add `calls` calls of every block, all computed."""
        for block in range(blocks):
            self.count(block, False, calls, None)

    def repeat(self, calls: list[int]) -> None:
        """All of these block calls, per block, are left out at once."""
        for block, n in enumerate(calls):
            self.count(block, True, n, None)

    def note_missed(self, errors: Sequence[float]) -> None:
        """Note the real error of a forecast, for each part of the latent or one for all of it.

        One that is not finite is no figure, and no JSON either.
        """
        known = all(map(math.isfinite, errors))
        self.missed = max(errors) if known else None
        self.missed_parts = list(errors) if known and len(errors) > 1 else []

    def note_ratio(self, ratio: float | None) -> None:
        """Note the ratio of a decision that concerns all blocks, see `policy.Decision`."""
        if ratio is not None and math.isfinite(ratio):
            self.ratio = [ratio] * len(self.computed)


@dataclass
class RunStats:
    """The record of one run.

    Attributes:
        config: Settings of the run.
        steps: Denoising steps, None if the host does not say.
        warmup_steps: W as used.
        parts: Names of the parts that the latent has; empty where it is one.
        peak_bytes: Most memory that the stored features held at once.
        inactive: Why nothing was left out from some point on, or None.
        in_ram: Whether stored tensors waited in RAM.
        planned: Denoising steps that were to be computed, by the plan before the run; None where there was none.
        restarts: How often the sampler was started again with better outputs.
        taken_back: Evaluations that were computed in vain: what was left out before them was not worth it, and was done
            again with them.
        uncorrected: Why forecasts were not corrected from some point on, or None.
        outlook: By the plan before the run, every step: its `level`, its `share` of the way, and whether it `computes`;
            None where there was none.
        broken_off: An interrupt or an error has ended it before its end.
        cut: An error has come out of the model, so that the newest evaluation is none. Not in the JSON.
    """

    config: Config
    steps: int | None = None
    warmup_steps: int | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    peak_bytes: int = 0
    inactive: str | None = None
    in_ram: bool = False
    planned: int | None = None
    restarts: int = 0
    taken_back: int = 0
    uncorrected: str | None = None
    outlook: list[dict] | None = None
    parts: Sequence[str] = ()
    broken_off: bool = False
    cut: bool = False

    def note_plan(self, computes: Sequence[int] | None, places: Sequence[Place]) -> None:
        """Note the steps that are to be computed, and where every step stands (the end of the run is one more)."""
        if computes is None:  # nobody knows any more how many there are
            self.planned = self.outlook = None
            return
        self.planned = len(computes)
        self.outlook = [
            {"level": p.level, "share": p.share, "computes": k in computes} for k, p in enumerate(places[:-1])
        ]

    def note_broken_off(self) -> None:
        """Note that the run ends here; an evaluation that nothing came of is not counted."""
        self.broken_off = True
        if self.evaluations and (self.cut or not (self.evaluations[-1].computed or self.evaluations[-1].reused)):
            self.evaluations.pop()

    def take_back(self, count: int) -> None:
        """Forget the newest evaluations, which are done again."""
        gone = self.evaluations[len(self.evaluations) - count :]
        del self.evaluations[len(self.evaluations) - count :]
        self.taken_back += sum(not sum(e.reused) for e in gone)

    @property
    def counted(self) -> str:
        """What `reused` and `total` count: block calls, or outputs of the model."""
        return "block calls" if self.config.by_block else "outputs"

    @property
    def missed(self) -> list[float]:
        """The real errors of what was left out, in units of the noise, as far as the run has validated them."""
        return [e.missed for e in self.evaluations if sum(e.reused) and e.missed is not None]

    @property
    def missed_parts(self) -> dict[str, float]:
        """The largest real error of what was left out, for each part of the latent by its name.

        Empty where the latent is one, and where not every error is known for each part.
        """
        rows = [e.missed_parts for e in self.evaluations if sum(e.reused) and e.missed is not None]
        if not rows or not all(rows):
            return {}
        return dict(zip(self.parts, map(max, zip(*rows, strict=True)), strict=True))

    @property
    def reused(self) -> int:
        """Block calls or outputs left out in the run."""
        return sum(sum(e.reused) for e in self.evaluations)

    @property
    def total(self) -> int:
        """Block calls or outputs of the run, computed and left out."""
        return self.reused + sum(sum(e.computed) for e in self.evaluations)

    @property
    def reuse_ratio(self) -> float:
        """The share that was left out."""
        return self.reused / self.total if self.total else 0.0

    @property
    def computed_in_full(self) -> int:
        """Evaluations of which nothing was left out."""
        return sum(not sum(e.reused) for e in self.evaluations)

    @property
    def block_speedup(self) -> float:
        """All block calls (or outputs) over computed ones: the speed-up if they took all the time."""
        computed = 1 - self.reuse_ratio + self.taken_back / max(1, len(self.evaluations))
        return 1 / computed if computed else float("inf")

    @property
    def seconds_full(self) -> float | None:
        """Median measured seconds of an evaluation without reuse; a mean would count the first one's loading."""
        return self._median(lambda e: sum(e.computed) and not sum(e.reused))

    @property
    def seconds_reuse(self) -> float | None:
        """Median measured seconds of an evaluation with reuse; None in a run that validates, which computes all."""
        return None if self.config.validate else self._median(lambda e: sum(e.reused))

    def _median(self, wanted) -> float | None:
        seconds = [e.seconds for e in self.evaluations if e.seconds is not None and wanted(e)]
        return statistics.median(seconds) if seconds else None

    @property
    def estimated_speedup(self) -> float | None:
        """What all evaluations would have taken at `seconds_full`, over what they took by the two measured medians.

        Of a run that validates: what it would have been if a left-out evaluation took no time.
        """
        if self.config.validate:
            return self.block_speedup if self.total else None
        if not self.seconds_full:
            return None
        count = len(self.evaluations)
        with_reuse = sum(1 for e in self.evaluations if sum(e.reused))
        spent = (count - with_reuse + self.taken_back) * self.seconds_full + with_reuse * (self.seconds_reuse or 0.0)
        return count * self.seconds_full / spent

    def figures(self) -> dict:
        """The figures of the run as a whole: of the log, of the live map and of the report alike."""
        counted = "counted", "reused", "total", "reuse_ratio", "block_speedup"
        measured = "seconds_full", "seconds_reuse", "estimated_speedup", "peak_bytes"
        own = (
            "steps",
            "warmup_steps",
            "planned",
            "outlook",
            "restarts",
            "taken_back",
            "uncorrected",
            "inactive",
            "in_ram",
            "parts",
            "broken_off",
        )
        return {name: getattr(self, name) for name in (*counted, *measured, *own)}

    def to_dict(self, first: int = 0, end: int | None = None) -> dict:
        """Everything as JSON types; of the evaluations those from `first` to before `end`."""
        rows = [asdict(evaluation) for evaluation in self.evaluations[first:end]]
        return {"format": FORMAT, **self.figures(), "config": self.config.to_dict(), "evaluations": rows}

    @property
    def why_nothing(self) -> str | None:
        """Why a run that is over has left nothing out; None where it has left something out."""
        stopped = "it was stopped before anything was left out" if self.broken_off else None
        return None if self.reused else self.inactive or stopped or self.config.unused

    def summary(self) -> str:
        """One line for the log and the node."""
        if (reason := self.why_nothing) is not None:
            again = f", {self.taken_back} of them again" if self.taken_back else ""
            return f"inactive: {reason}; {len(self.evaluations)} evaluations computed in full{again}"
        line = (
            f"left out {self.reused} of {self.total} {self.counted} ({self.reuse_ratio:.0%}), {self._speed}, "
            f"held {format_bytes(self.peak_bytes)}{' (partly in RAM)' if self.in_ram else ''}"
        )
        if self.planned is not None:
            line += f", plan: {self.plan}, it became {self.computed_in_full} of {len(self.evaluations)} evaluations"
            line += " until it was stopped" if self.broken_off else ""
        line += (
            f", sampler started again {'once' if self.restarts == 1 else f'{self.restarts} times'}"
            if self.restarts
            else ""
        )
        line += f", {self.taken_back} computed again" if self.taken_back else ""
        line += f"; forecasts not corrected: {self.uncorrected}" if self.uncorrected else ""
        return f"{line}; inactive since: {self.inactive}" if self.inactive else line

    @property
    def _speed(self) -> str:
        speedup = "?" if self.estimated_speedup is None else f"{self.estimated_speedup:.2f}x"
        if not self.config.validate:
            full, reuse = format_seconds(self.seconds_full), format_seconds(self.seconds_reuse)
            return f"measured {full} per full and {reuse} per reuse evaluation, estimated speed-up {speedup}"
        off = ""
        if self.missed:
            of_parts = ", ".join(f"{name} {error:.2%}" for name, error in self.missed_parts.items())
            middle, most = statistics.median(self.missed), max(self.missed)
            off = f", off by {middle:.2%} of the noise in the median, {most:.2%} at most"
            off += f" ({of_parts})" if of_parts else ""
        return f"validated{off}: without validate it would have been about {speedup}"

    @property
    def plan(self) -> str:
        """What the run means to compute, as a part of a sentence."""
        return f"{self.planned} of {self.steps} steps computed, {self.steps / max(1, self.planned):.2f}x"
