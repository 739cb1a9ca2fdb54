"""The method "forecast": whole evaluations are left out, and the output that they would have given is forecast.

It is not the paper's: what is measured and reused here is the output at latent size, not the blocks'. In symbols, with
D_n the output computed at position u_n of the schedule (in steps), and gamma the user's threshold:

1. Plan: the steps to compute are planned from the noise levels, before the run and after each of them, see `plan`.
2. Forecast: D^(u) = D_n + s r(u - u_n), s = (D_n - D_(n-1)) / (u_n - u_(n-1)), along the line through the last two
   computed, of which less is taken the farther it goes: r(h) = h / (1 + h / 0.2 N), N being the steps of a whole run.
   After the first evaluation s is 0, and where the sampler renews the noise r is (see `History.flat`).
3. Evidence: each computed output D_m measures what the forecast for it would have missed,
   e = rms(D^ - D_m) / rms(x - D_m), x being the sampler's latent (of several parts: `history.quieted`). A line misses
   K (lambda_m - lambda_n) sqrt(lambda_m - lambda_(n-1)), so that e tells K. A running mean of log K, against what was
   expected, makes the plan's scale: their ratio, at least 0.5. An error far beyond what was expected is a jump: what
   comes next is computed. What, by this e alone, was not worth leaving out is done again (`_take_back`).
4. Correction: once D_m is computed, the outputs left out are known better, on the line between D_n and D_m. The sampler
   is started again with these (see `tape`). For Euler's method that is not needed: its step takes an output as
   x <- a x + (1 - a) D, a = sigma' / sigma, with sigma' the share of noise after the step. With s' the slope from D_n
   to D_m, forecasts have left s A - s' B in x, where over them A <- a A + (1 - a) r(u - u_n) and
   B <- a B + (1 - a)(u - u_n). The computed step pays it back: it gets D_m - a_m / (1 - a_m) (s A - s' B).

That an evaluation goes on from the last one is checked: `moves` compares the latents. Where it does not, everything
that was measured is forgotten; where more of an output is taken in than by Euler's step, the scale grows by that.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .budget import Need
from .compiler import outside_graphs
from .config import Config
from .evidence import Evidence
from .history import HOLDS_UNTIL, History
from .plan import EARLY, MU, MULTISTEP, Planner, effective_gamma, protected
from .policy import Decision, Policy, policy_for
from .schedule import Place, whole_steps
from .stats import Evaluation
from .tape import Restart, Tape
from .tensors import Tensors
from .trajectory import LEAST, MOST_TRAJECTORIES, Trajectory

LAST = 0.04  # share of the run's steps, at its end, that are never left out: little comes after to mend an error


@dataclass(frozen=True)
class ForecastConfig(Config):
    """Settings of the method "forecast".

    `warmup_steps` 0 means that the plan decides; the first step is always computed. `threshold` says how much error
    computing one has to save. `reuse_interval` n leaves out at most n - 1 in a row; 0 leaves that to the plan.
    """

    name: ClassVar[str] = "forecast"
    unused: ClassVar[str] = "every step was worth computing at this threshold"

    def automatic_warmup(self, steps: int | None) -> int:
        return 1


@policy_for(ForecastConfig)
class Forecast(Policy):
    """What a run forecasts, and when it computes. The ablation of the benchmarks changes one of these at a time."""

    replays = together = True
    history, planner, early, last = History, Planner, EARLY, LAST

    def __init__(self, *args):
        super().__init__(*args)
        self._blend, self._tape = self.resources.blend, self.resources.tape
        self._corrects = self._tape is not None and self._tape.corrects  # else forecasts are paid back
        sampler = self._tape or Tape()
        self._amplifies, self._order = sampler.amplifies, sampler.order
        self._calm = not self.resources.guided and not self._corrects
        self._most_in_a_row = self.config.reuse_interval - 1 if self.config.reuse_interval else math.inf
        self._planner: Planner | None = None  # until `outlook`
        self._trajectories: dict[Hashable, Trajectory] = {None: Trajectory()}
        self._now, self._latent = self._trajectories[None], ()
        self._evidence = Evidence(self._blend, self.resources.together, self.resources.parts, sampler.most_taken)
        self._place: Place | None = None
        self._computes, self._pays, self._mends, self.has_measured = True, False, False, False

    # ---- the plan

    @property
    def rest(self) -> str:
        if not self._mu:
            return "nothing is forecast for this sampler"
        why = f"at threshold {self.config.threshold:g} the plan computes the rest"
        is_highest = self.config.threshold == self.config.limits("threshold")["max"]
        return why if is_highest else f"{why}; a higher one may leave out more"

    def outlook(self, places: Sequence[Place]) -> None:
        self._places, self._N, steps = places, whole_steps(places), len(places) - 1
        whole, may_be_calm = self.resources.whole, self._calm or self._blend is not None  # of a blend it is seen later
        gamma, most = (effective_gamma(self.config.threshold, whole or self._N, x) for x in (self._calm, may_be_calm))
        self._mu, self._most_mu = MU * gamma / self._amplifies, MU * most / self._amplifies
        # another stage goes on from an open end; UniPC makes much of its last outputs there too
        open_end = whole is not None and self._order == 1 or not self.last or self.steps is None
        last = 0 if open_end else protected(places, self.last, gamma, self._order, pays=not self._corrects)
        after = [place.phase == "after" for place in places]  # nothing is mended there, so the step before is computed
        must = [not p.may_reuse or after[k + 1] or k >= steps - last for k, p in enumerate(places[:-1])]
        self._planner = self.planner(places, must, self._most_in_a_row, self.early, whole, gamma)
        for history in (h for trajectory in self._trajectories.values() for h in trajectory.histories.values()):
            history.steps = self._N
        self._warm = next((k for k, place in enumerate(places) if place.phase != "warmup"), steps)
        self._plan = self._computed_at((self._tape or Tape()).price, self._mu)

    def _computed_at(self, scale: float, mu: float) -> list[int]:
        return [*range(self._warm), *self._planner.plan(max(self._warm - 1, 0), scale, mu)]

    @property
    def planned(self) -> Sequence[int] | None:
        return None if self.steps is None else self._plan

    def most_reuse(self, steps: int, warmup: int) -> int:
        return max(0, steps - len(self._computed_at(LEAST, self._most_mu)))  # outputs may prove to bend less

    def _next(self) -> int:
        """The step to compute after the last one."""
        now, known = self._now, self._planner.steps
        n = min(int(now.u_n + 1e-3), known - 1 if self.steps is not None else known // 2)  # else the rhythm goes on
        following = [*self._planner.plan(n, now.scale, self._mu), known][0]
        return int(now.u_n + 1e-3) + following - n

    # ---- once per evaluation

    def check(self, trajectory: Hashable, latent: Tensors) -> None:
        if trajectory not in self._trajectories and len(self._trajectories) >= MOST_TRAJECTORIES:
            self._trajectories.pop(next(iter(self._trajectories)))
        self._now, self._latent = self._trajectories.setdefault(trajectory, Trajectory()), latent
        self._evidence.arrive(self._now, latent)

    def decide(self, place: Place) -> Decision:
        self._place, now = place, self._now
        self._evidence.weigh(now, place.level)
        self._take_back()
        if self._blend is not None:
            self._blend.begin(place.level, self._latent, self.resources.offload.device, place.noise)
            self._latent = ()
        self._see_sampler()
        open_end = self.resources.whole is not None
        noisy_end = place.ends_noisy and not open_end and place.position > self.steps - 1.5
        self._pays = not self._corrects and now.euler and not noisy_end
        self._computes = not place.may_reuse or self.must_compute(place)
        now.in_a_row += not self._computes
        return Decision(self._computes, self._ratio(place), now.expected(place.lam))

    def _see_sampler(self) -> None:
        """Plan again where the run has shown that its sampler may go by several outputs, or whether it is calm."""
        euler, guided = self._now.move.euler, self.resources.guided
        order = max(self._order, 1 if euler or self._corrects and not self._tape.broken else MULTISTEP)
        if self._blend is not None:  # the first step of nearly any sampler is Euler's
            guided = self._blend.guides or self._place.evaluation < 2
        calm = not guided and not self._corrects and order == 1
        if (order, calm) != (self._order, self._calm):
            self._order, self._calm, self._now.next = order, calm, None
            self.outlook(self._places)

    def _take_back(self) -> None:
        """Do again what was left out before the step computed last, where that shows that it was not worth it.

        Raises:
            Restart: the sampler has to be started again.
        """
        now, tape, (n, m) = self._now, self._tape, (int(u + 1e-3) for u in (self._now.before, self._now.u_n))
        found, now.found = now.found, None  # what is left out from here on is left out knowing it
        if tape is None or tape.broken or self.resources.together or found is None or not 0 <= n < m - 1:
            return
        # m is computed again as well: each of these evaluations has to save as much as any that is planned
        if found * now.move.price * self._planner.cost(n, m) > self._mu * (m - n) and (done := tape.take_back()):
            now.take_back(found)
            raise Restart(taken_back=done)

    def must_compute(self, place: Place) -> bool:
        """Whether an evaluation that the user's settings would let go is computed all the same."""
        now, step = self._now, int(place.position + 1e-3)
        # where the first step is not Euler's, the sampler makes something else of an output that is given again
        known = now.histories and all(h.ready or h.may_hold and now.euler for h in now.histories.values())
        if not known or now.move.idle or now.in_a_row >= self._most_in_a_row or place.last and self.last:
            return True
        if now.next is None:
            now.next = self._next()
        return step <= now.u_n + 1e-3 or step >= now.next

    def _ratio(self, place: Place) -> float | None:
        """What leaving out the steps since the last computed one costs, this one included, over what is allowed."""
        n, k = int(self._now.u_n + 1e-3), int(place.position + 1e-3)
        if not 0 <= n < k < self._planner.steps or not self._mu:
            return None
        return self._now.scale * self._planner.cost(n, k + 1) / self._mu

    @outside_graphs(recursive=False)
    def output(
        self,
        key: Hashable,
        signature: Hashable,
        compute: Callable[[], Tensors],
        device: torch.device,
        unit: Callable[[Tensors], Tensors],
    ) -> Tensors:
        now, waits_on, self._mends = self._now, self.resources.offload.device, False
        history = now.histories.get(key)
        known = history is not None and history.signature == signature
        self.has_measured |= known
        if known and (history.ready or history.may_hold) and not self._computes:
            given = history.forecast(self._place, device)
            self._note(given, None, own=False)
            return given
        if not self._computes:  # what is known is of something else, or too little
            self.resources.compute_instead()
        result, self._computes = compute(), True
        self._mends = known = known and history.is_like(result)
        if not known:
            early = self._place.tau <= HOLDS_UNTIL
            history = now.histories[key] = self.history(signature, early, self._N)
            now.late = not early if now.late is None else now.late
        with torch.no_grad():
            given = history.observe(self._place, result, unit(result), waits_on, self._pays)
            now.begin_gap(self._place.position, self._place.lam)
            computed = given is result
            self._note(history.newest if computed else given, history.missed, own=computed)
            history.missed = None
        return given

    @outside_graphs()
    def _note(self, given: Tensors, missed: Tensors | None, own: bool) -> None:
        """Remember what the sampler was given, where the host says for which latent."""
        if self._blend is not None:
            self._blend.note(given, missed)
        elif self._latent:
            self._now.track.note(self._place.level, self._latent, given, own, self.resources.offload.device)
        self._latent = ()

    def given(self, given: Tensors) -> None:
        if self._tape is None or self._tape.broken:
            return
        size = sum(x.nbytes for x in given)  # an evaluation's; a step may have several
        fits, waits_on = self.resources.room(max(self._tape.keeps(self.steps or 0) * size, self._tape.nbytes + size))
        if not fits:
            self._tape.run_out()
        if self._tape.broken:
            return
        self._tape.note(self._now, self._place.position, not self._computes, given, waits_on)
        if self._mends and self._corrects:
            self._tape.mend()

    def answer(self, level: torch.Tensor, latent: Tensors) -> Tensors | None:
        given, trajectory = (self._tape and self._tape.answer(level, latent)) or (None, None)
        if given is not None:
            trajectory.track.arrive(latent, self.resources.offload.device)  # the run goes on from the last of these
        return given

    # ---- what is measured

    def measured(self) -> list[torch.Tensor]:
        return self._evidence.measured(self._trajectories.values())

    def settle(self, values: list[float], evaluation: Evaluation | None) -> None:
        self._evidence.settle(values, self._trajectories.values(), evaluation)

    def opinion(self, level: float | None) -> list[float]:
        return self._evidence.opinion(self._now, level)

    def told(self) -> list[float]:
        return self._blend.told if self._blend is not None else []

    def agree(self, opinion: Sequence[float], told: torch.Tensor | None = None) -> None:
        self._evidence.agree(opinion, told)

    # ---- memory

    def planned_bytes(self, latent: tuple[int, ...], hidden: tuple, blocks: int, streams: int) -> int:
        tape = self._tape.keeps(self.steps or 0) if self._tape is not None else 0
        stored = 4 * (4 + tape) * math.prod(latent)  # in fp32: two outputs, of the last evaluation x' and D', the tape
        return stored if self.resources.offload.device is None else 0

    def need(self) -> Need:
        """Bytes held once every output has its two points."""
        histories = [h for trajectory in self._trajectories.values() for h in trajectory.histories.values()]
        size = sum(h.nbytes if h.ready else 2 * h.nbytes for h in histories)
        size += sum(trajectory.track.most_bytes for trajectory in self._trajectories.values())
        size += self._blend.nbytes if self._blend is not None else 0
        return Need("the stored outputs", size, 0, size)

    @property
    def held_bytes(self) -> int:
        beside = sum(x.nbytes for x in (self._blend, self._tape) if x is not None)
        return beside + sum(trajectory.nbytes for trajectory in self._trajectories.values())

    def drop(self) -> None:
        self._evidence.drop()
        if self._blend is not None:
            self._blend.begin(None, (), None)
        if self._tape is not None:
            self._tape.give_up("the run does not forecast any more")
        self._trajectories = {None: Trajectory()}
        self._now, self._latent = self._trajectories[None], ()
