"""Which steps are computed: planned from the noise levels before a run, and again after each computed evaluation.

With sigma the share of noise in the latent and lambda = log((1 - sigma) / sigma), the logarithm of its signal-to-noise
ratio, say that step k is left out after the computed step n, and that m is computed next. In units of the noise, the
forecast for it misses about

    e_k = K (lambda_k - lambda_n) sqrt(lambda_m - lambda_n),    K = scale (FLAT + BUMP exp(-(lambda_k - WHERE)^2)).

A line through two outputs would miss in proportion to the square of the distance if they were smooth. They are rough,
and a power of 1.5 is what trained models show, in steps of any size. What they also show is where they bend: when the
picture takes shape, at some share of noise (WHERE is 0.92 of it) and not at some step, whatever sampler, flow shift or
number of steps come there. `scale` is what this run has shown of it so far. In the latent, e_k leaves

    c_k = e_k share_k (1 + 4 share_k) / (1 - sigma_k)^0.6,    share_k = sigma_k - sigma_(k+1),

since a step takes in as much of its output as it removes noise, the model makes more of it where that is much at once,
and the rest of the run builds on an early error. The plan minimises the sum of c_k over the steps left out, plus mu for
every step computed: computing has to save that much. With gamma the user's threshold (see `effective_gamma`),
mu = 0.019 gamma, divided by what the sampler makes of an error over what Euler's method does (`Tape.amplifies`).
"""

import math
from collections.abc import Sequence
from itertools import accumulate

from .schedule import Place

FLAT, BUMP, WHERE = 0.08, 0.17, -2.4  # of K; see bench/NOTES.md, "How errors grow"
EARLY = 0.6
AT_ONCE = 4.0
FLOOR = 1e-3  # share of noise that a step removes at least, so that nothing is free
MULTISTEP = 3  # outputs that a sampler may go by whose steps are not Euler's
STILL = 1e-4  # of lambda; no step counts for less, so that leaving one out is never free
LONGEST, AT_MOST, FEW = 0.13, 0.2, 3  # see `longest`
FEWEST, USUAL = 8, 16  # steps, see `effective_gamma`
ROUGHEST = 32.0  # see `ending`
MU = 0.019  # error in the latent that computing a step has to save at gamma = 1, in units of the noise


def bend(lam: float) -> float:
    """K at lambda, for a scale of 1."""
    return FLAT + BUMP * math.exp(-((lam - WHERE) ** 2))


def effective_gamma(gamma: float, steps: float, calm: bool) -> float:
    """What the user's threshold counts for in a run of so many steps: up to four times itself in a calm one.

    In few steps each takes in much of its output, so that at one price for all nothing would be left out. It may cost
    more where the rest of the run makes little of an error, as a model does that was distilled for few steps.

    Args:
        calm: The sampler takes Euler's steps, and nothing guides it. Guidance makes much of an error, the more the
            fewer steps there are; so do samplers that go by several outputs, or that renew the noise.
    """
    return gamma * (USUAL / min(max(steps, FEWEST), USUAL)) ** 2 if calm else gamma


def longest(gamma: float, steps: float) -> int:
    """How many steps may be left out in a row in a run of so many: a line says little about what is further away.

    That is a share of them; but in a short run too, a threshold of 2 leaves out two, and one of 3 three.
    """
    return max(math.ceil(min(LONGEST * max(1.0, gamma), AT_MOST) * steps), int(min(gamma, FEW)))


def ending(gamma: float, order: int) -> int:
    """How many of the last steps are computed for a sampler that goes by so many outputs; for a rough video fewer.

    Nothing is sure to be computed beyond what a user can ask of a long run: of four steps every other one then goes.
    """
    return max(gamma <= ROUGHEST, round(order / max(1.0, gamma)))


def protected(places: Sequence[Place], share: float, gamma: float, order: int, pays: bool) -> int:
    """How many of the last steps are always computed: a share of them, and as many as `ending` says.

    A run that ends noisy pays back before its last step, whose output others may use as it is.
    """
    noisy = places[-1].ends_noisy
    least = 1 if noisy else ending(gamma, order)
    return max(least, round(share * (len(places) - 1))) + (noisy and pays)


class Planner:
    """Plans the rest of a run.

    Args:
        places: Where every step stands, and where the run ends.
        must: Whether a step is computed whatever it costs.
        most_in_a_row: How many may be left out in a row.
        whole: Steps of the whole that this run is a stage of; its own by default.
        gamma: The user's threshold.

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
        gamma: float = 1.0,
    ):
        self._lam = [place.lam + k * STILL for k, place in enumerate(places)]
        *places, _ = places
        self.steps, self._must = len(places), must
        weights = [bend(p.lam) * _weight(p, early) for p in places]
        terms = [weights, [w * lam for w, lam in zip(weights, self._lam, strict=False)]]
        self._sums = [list(accumulate(each, initial=0.0)) for each in terms]  # of the weights, times 1 and lambda
        self._longest = min(longest(gamma, whole or self.steps), most_in_a_row)

    def cost(self, n: int, m: int) -> float:
        """The sum of c_k over the steps between n and m, for a scale of 1."""
        ones, lams = (upto[m] - upto[n + 1] for upto in self._sums)  # one pass does for every n and m
        return (lams - self._lam[n] * ones) * math.sqrt(max(self._lam[m] - self._lam[n], STILL))

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


def _weight(place: Place, early: float) -> float:
    """c_k / e_k."""
    share = max(place.share, FLOOR)
    return share * (1 + AT_ONCE * share) / max(1 - place.noise, 0.005) ** early
