"""The interface of a method. A method is one file: its settings, a subclass of `Config`, and its `Policy`."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .blend import Blend
from .budget import Need, Offload
from .compiler import outside_graphs
from .config import Config
from .schedule import Place
from .stats import Evaluation
from .tape import Tape
from .tensors import Tensors


@dataclass(frozen=True)
class Decision:
    """Whether an evaluation is computed in full.

    Attributes:
        compute: True for computed.
        ratio: What the decision rests on, measured over allowed: up to 1 it may be left out. None where nothing is
            known.
        expected: Error that what is given in place of the output is taken to have, in the unit of `Run.output`.
    """

    compute: bool
    ratio: float | None = None
    expected: float | None = None


@dataclass
class Resources:
    """What a run lends to its policy.

    Attributes:
        offload: Where stored tensors wait between their uses.
        fit: Asks the budget whether `Policy.need` fits; when it does not, the run is inactive from there on.
        deactivate: Ends the method for this run, with a reason for the user.
        lock: Held by the run while it begins a call; with several GPUs the calls of an evaluation run in threads.
        room: Whether that many bytes beside `Policy.need` may wait somewhere, and where (None: the model's device).
        compute_instead: Says that an evaluation that `Policy.decide` would leave out is computed after all.
        blend: Where the outputs are conds, what finds out how much of each the sampler takes.
        tape: Where the host can start the sampler again; it may be there to take back alone (`Tape.corrects`).
        whole: Steps of all stages of the video together, where another run is known to go on from the noisy end of this
            one; else None.
        guided: The sampler is given a blend of several conds, as far as the host knows.
        together: Whether other processes share the decisions, see `Policy.opinion`.
        parts: How many parts the latent has.
    """

    offload: Offload
    fit: Callable[[], bool]
    deactivate: Callable[[str], None]
    lock: threading.RLock
    room: Callable[[int], tuple[bool, torch.device | None]]
    compute_instead: Callable[[], None]
    blend: Blend | None = None
    tape: Tape | None = None
    whole: int | None = None
    together: bool = False
    parts: int = 1
    guided: bool = True


class BlockCall(Protocol):
    """One call of the model whose blocks a policy wants to see."""

    held_bytes: int  # held for the length of the call, beside what `Policy.held_bytes` counts

    def block(
        self, index: int, inputs: Tensors, compute: Callable[[], Tensors], join=None, in_place: bool = False
    ) -> Tensors:
        """The output of block `index`, see `prefix.call.Call.block`."""

    def finish(self) -> bool:
        """End the call; False when its result is unusable, so that the model has to be called again, plainly."""


class Policy:
    """What a method leaves out and what it keeps for that. A method overrides what it needs; this leaves out nothing.

    A policy lives as long as its run, and knows no host. The run counts calls, keeps the record, reads the device once
    per evaluation and sees to it that an evaluation outside of the user's range is computed.

    Args:
        config: The user's settings, of the type that the method is registered for.
        steps: Denoising steps of the run, None if unknown.
        resources: What the run lends.
    """

    replays = False  # whether it asks the host to start the sampler again
    together = False  # whether processes among which a model is spread can decide alike, see `opinion`
    rest = "the rest is computed in full"  # why most_reuse may be 0, behind "3 are warmup, and "
    has_measured = True  # whether anything could be compared; the record says if nothing could be

    def __init__(self, config: Config, steps: int | None, resources: Resources):
        self.config, self.steps, self.resources = config, steps, resources

    def why_never(self) -> str | None:
        """Why these settings can leave nothing out in any run, or None."""
        return None

    def most_reuse(self, steps: int, warmup: int) -> int:
        """How many of `steps` denoising steps can be left out at the most, by schedule."""
        return 0

    def outlook(self, places: Sequence[Place]) -> None:
        """Be told where every step will stand, and the end of the run (one more than there are steps).

        Told before the first evaluation, again when that begins (a sampler may begin in the middle), and whenever the
        levels of a host that does not tell them have shown more of it; `steps` may change then.
        """

    @property
    def planned(self) -> Sequence[int] | None:
        """The steps that will be computed, as far as that is known before the run; None where nothing is planned."""
        return None

    def check(self, trajectory: Hashable, latent: Tensors) -> None:
        """Be told what latent comes with the evaluation that begins, before `measured` is asked.

        Args:
            trajectory: Which of several ways through the noise levels this is, where a run has several.
            latent: Its parts (one, or video and audio), each with the batch first. Only to look at until the output.
        """

    def opinion(self, level: float | None) -> Sequence[float]:
        """What this process knows for the decision that comes, at most `agreement.OPINIONS` numbers, larger for worse.

        Asked, where other processes share the decision, once per evaluation, behind `settle`. -inf stands for nothing.

        Args:
            level: Noise level of the evaluation that begins, as this process sees it.
        """
        return ()

    def told(self) -> Sequence[float]:
        """What all other processes are to hear, see `pooled.slot`, or nothing; asked behind `opinion`."""
        return ()

    def agree(self, opinion: Sequence[float], told: torch.Tensor | None = None) -> None:
        """Be told what holds for all processes: `decide` may rest on nothing else that is measured.

        Args:
            opinion: The largest of each number.
            told: What each of them has told, (processes, numbers), where all of them have.
        """

    def decide(self, place: Place) -> Decision:
        """Decide about the next evaluation. Asked once for each, in order; not if inactive or past end_percent.

        Where `place.may_reuse` is false the evaluation is computed, whatever is answered.
        """
        return Decision(compute=True)

    @outside_graphs(recursive=False)
    def output(
        self,
        key: Hashable,
        signature: Hashable,
        compute: Callable[[], Tensors],
        device: torch.device,
        unit: Callable[[Tensors], Tensors],
    ) -> Tensors:
        """What the sampler gets in this evaluation; arguments as in `Run.output`."""
        return compute()

    def given(self, given: Tensors) -> None:
        """Be told what the sampler gets in the end, where the host can start it again; may raise `Restart`."""

    def answer(self, level: torch.Tensor, latent: Tensors) -> Tensors | None:
        """What the sampler was given in this evaluation before it was started again, or None; see `Tape`."""
        return None

    def begin_call(self, keys: Sequence[Hashable], blocks: int, batch_dim: int) -> BlockCall | None:
        """Begin one call of the model; None leaves the model untouched. Arguments as in `Run.begin_call`."""
        return None

    def measured(self) -> list[torch.Tensor]:
        """What the evaluation that ends has measured, and `check`, 1-D on the device; read together with the level."""
        return []

    def settle(self, values: list[float], evaluation: Evaluation | None) -> None:
        """Take back the numbers of `measured`, in its order, forget its tensors, and fill in the record.

        It may be called without any, and before the first evaluation, when `evaluation` is None.
        """

    def planned_bytes(self, latent: tuple[int, ...], hidden: tuple, blocks: int, streams: int) -> int:
        """About what a run will hold on the model's device, for hosts that plan before they load a model.

        Args:
            latent: Shape of the sampler's latent.
            hidden: (shape, dtype) of one stream's hidden state; empty where it is not known.
            blocks: Length of the stack.
            streams: How many streams there will be.
        """
        return 0

    def need(self) -> Need:
        """What is stored once everything that is known now has been stored."""
        return Need("nothing", 0, 0, 0)

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return 0

    def drop(self) -> None:
        """Give all memory back."""


_POLICIES: dict[type[Config], type[Policy]] = {}


def policy_for(config: type[Config]) -> Callable[[type[Policy]], type[Policy]]:
    """Class decorator: registers a policy for the type of its settings."""

    def register(policy: type[Policy]) -> type[Policy]:
        _POLICIES[config] = policy
        return policy

    return register


def policy_of(config: Config) -> type[Policy]:
    """The policy of some settings, by their type.

    Raises:
        TypeError: no method is registered for that type.
    """
    if type(config) not in _POLICIES:
        known = ", ".join(sorted(cls.__name__ for cls in _POLICIES))
        raise TypeError(f"{type(config).__name__} is not the settings of a method; known are {known}")
    return _POLICIES[type(config)]
