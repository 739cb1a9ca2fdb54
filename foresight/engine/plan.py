"""Which steps are computed: planned from the noise levels before a run, and again after each computed evaluation.

With tau the share of the run that is over (0..1), say that step k is left out between the computed steps n and m.
Once m is computed, a line between the two tells output k but for K (tau_k - tau_n)(tau_m - tau_k), K being half of the
outputs' second derivative. Until then the sampler goes on with a forecast, which misses about
K (tau_k - tau_n)(tau_m - tau_n), and what comes of that is what the model sees next. Together, in units of the noise:

    e_k = K (tau_k - tau_n) ((tau_m - tau_k) + (tau_m - tau_n)),    K = CURVATURE scale / ((1 - tau_k) sqrt(tau_k))

Outputs change most at both ends of a run. CURVATURE is what trained models show; `scale` is what this run has shown of
it so far. In the latent, e_k leaves

    c_k = e_k (sigma_k - sigma_(k+1)) / (1 - sigma_k)^0.6,

since a step takes in as much of its output as it removes noise, and the rest of the run builds on an early error. The
plan minimises the sum of c_k over the steps left out, plus mu for every step computed: computing has to save that much.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

from .schedule import Place

CURVATURE = 1.25
EARLY = 0.6
FLOOR = 1e-3  # share of noise that a step removes at least, so that nothing is free
LONGEST = 0.16  # share of the run's steps that may be left out in a row: a line says little about what is further away
STILL = 1e-4  # share of the run that a step makes at least, for the same reason
ENDS = 0.03  # share of the run; nearer to its beginning or end, K grows no more


def curvature(tau: float) -> float:
    """K, for a scale of 1."""
    tau = min(max(tau, ENDS), 1 - ENDS)
    return CURVATURE / ((1 - tau) * math.sqrt(tau))


class Planner:
    """Plans the rest of a run.

    Args:
        places: Where every step stands, and where the run ends.
        must: Whether a step is computed whatever it costs.
        most_in_a_row: How many may be left out in a row.
        whole: Steps of the whole that this run is a stage of; its own by default.

    Attributes:
        steps: How many there are.
    """

    def __init__(
        self,
        places: Sequence[Place],
        must: Sequence[bool],
        most_in_a_row: float,
        early: float = EARLY,
        whole: int | None = None,
    ):
        self._tau = [place.tau + k * STILL for k, place in enumerate(places)]
        *places, _ = places
        self.steps, self._must = len(places), must
        weights = [
            curvature(p.tau) * max(p.share, FLOOR) / max(1 - p.noise, 0.005) ** early for p in places
        ]  # c_k / e_k, times K
        terms = ([w * tau**power for w, tau in zip(weights, self._tau, strict=False)] for power in range(3))
        self._sums = [list(accumulate(each, initial=0.0)) for each in terms]  # of the weights, times 1, tau and tau^2
        self._longest = min(math.ceil(LONGEST * (whole or self.steps)), most_in_a_row)

    def cost(self, n: int, m: int) -> float:
        """The sum of c_k over the steps between n and m, for a scale of 1."""
        # the two distances make 2 tau_m (tau_k - tau_n) - tau_k^2 + tau_n^2, so that three sums do for every n and m
        tau_n, tau_m = self._tau[n], self._tau[m]
        ones, taus, squares = (upto[m] - upto[n + 1] for upto in self._sums)
        return 2 * tau_m * (taus - tau_n * ones) - squares + tau_n * tau_n * ones

    def plan(self, n: int, scale: float, mu: float) -> list[int]:
        """The steps to compute after step n, which is computed."""
        best = {self.steps: (0.0, self.steps)}  # by computed step: the cost of all that comes, the next one computed
        for k in range(self.steps - 1, n - 1, -1):
            best[k] = min((scale * self.cost(k, m) + best[m][0] + mu * (m < self.steps), m) for m in self._next(k))
        steps, m = [], best[n][1]
        while m < self.steps:
            steps.append(m)
            m = best[m][1]
        return steps

    def _next(self, n: int):
        """The steps that may be the next computed after n; the end of the run is one."""
        for m in range(n + 1, self.steps + 1):
            yield m
            if m - n > self._longest or m < self.steps and self._must[m]:
                return
