"""The method "forecast" in ComfyUI once more: slow and plain, every value kept, Python numbers.

It shares the constants of the method with the engine, and nothing else.
"""

import math

import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension

from foresight.engine import forecast, history, moves
from support.situations import WARMUP

WRAPPERS = comfy.patcher_extension.WrappersMP


def reach(h):
    return h / (1 + max(h, 0) / history.DAMPING)


class Reference:
    """`Reference(gamma)(patcher)` is a clone whose runs follow the method: every value kept, Python numbers, no engine.

    `computed` counts the computed evaluations of all runs. What must stay the same for a forecast is not looked at.
    """

    def __init__(self, gamma: float):
        self.tolerance, self.computed = gamma**2 * forecast.TOLERANCE, 0

    def __call__(self, patcher):
        patched = patcher.clone()
        patched.add_wrapper_with_key(WRAPPERS.OUTER_SAMPLE, "reference", self._outer_sample)
        return patched

    def _outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        self.sigmas = args[3].tolist()
        self.flow = isinstance(guider.model_patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST)
        self.seen, self.known, self.rate, self.left_out = 0, [], None, []
        self.last, self.euler, self.step = None, True, 0.0
        found = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(found)
        comfy.patcher_extension.add_wrapper_with_key(
            WRAPPERS.PREDICT_NOISE, "reference", self._predict_noise, guider.model_options, is_model_options=True
        )
        try:
            return executor(*args, **kwargs)
        finally:
            guider.model_options = found

    def _share(self, sigma):
        return sigma if self.flow else sigma / (1 + sigma)

    def _predict_noise(self, executor, x, timestep, *args, **kwargs):
        sigma, s, steps = float(timestep.max()), self.sigmas, len(self.sigmas) - 1
        i = max(k for k in range(steps) if s[k] >= sigma * (1 - 1e-4) or k == 0)
        u = i + max(0.0, (s[i] - sigma) / (s[i] - s[i + 1]))
        a = min(s[i + 1] / sigma, 1)
        factor = self._move(x, sigma)
        newest = self.known[-1][0] if self.known else self.newest if self.last else 0
        share = max(self._share(sigma) - self._share(s[i + 1]), forecast.FLOOR)
        price = share * factor / max(1 - self._share(sigma), 0.005) ** forecast.EARLY
        cost = self.rate and max(self.rate, forecast.FLOOR) * max(u - newest, 0.25) * price
        spent = sum(c for *_, c in self.left_out)
        warm = u >= WARMUP - 1e-3 and self.seen >= self.warmup
        self.seen += 1
        if (
            warm
            and len(self.known) == 2
            and self.rate is not None
            and u - newest <= math.ceil(0.16 * steps)
            and spent + cost <= self.tolerance
            and u <= steps - max(1, round(0.04 * steps)) - 0.5 - (s[-1] > 0)
        ):
            (u0, d0), (u1, d1) = self.known
            self.left_out.append((u, a, cost))
            guess = d1 + (d1 - d0) / (u1 - u0) * reach(u - u1)
            self.last = x.clone(), guess.clone(), sigma
            return guess
        self.computed += 1
        out = given = executor(x, timestep, *args, **kwargs)
        if self.known and abs(u - self.known[-1][0]) < 1e-3:
            self.known.pop()
        elif len(self.known) == 2:
            (u0, d0), (u1, d1) = self.known
            slope = (d1 - d0) / (u1 - u0)
            missed = d1 + slope * reach(u - u1) - out
            e = ((missed.flatten(1) ** 2).sum(1) / ((x - out).flatten(1) ** 2).sum(1)).max().sqrt().item()
            owed = 0
            for v, b, _ in self.left_out:
                given_then, better = slope * reach(v - u1), (out - d1) / (u - u1) * (v - u1)
                owed = b * owed + (1 - b) * (given_then - better)
            if self.left_out and a and self.euler and not (s[-1] > 0 and u > steps - 1.5):
                given = out - a / (1 - a) * owed
            distance = abs(u - u1)
            jump = self.rate is not None and e > max(forecast.JUMP * self.rate * distance, forecast.ROUNDING)
            rate = e if jump else e / distance
            self.known = [] if jump else self.known
            if e:
                self.rate = rate if self.rate is None else max(rate, (rate + self.rate) / 2)
        self.known = [*self.known[-1:], (u, out.clone())]
        self.left_out, self.euler, self.newest = [], True, u
        self.last = x.clone(), given.clone(), sigma
        return given

    def _move(self, x, sigma):
        """How much more than Euler's step the sampler took in; forgets what no longer holds."""
        if self.last is None:
            return 1.0
        before, given, level = self.last
        b, factors, goes_on = 1 - sigma / level, [1.0], sigma <= level * (1 + 1e-4)
        self.step = b if b > moves.STANDING and goes_on else self.step
        for item in range(len(x)):
            v, w = (given - before)[item].double(), (x - before)[item].double()
            toward, moved = v.norm().item(), w.norm().item()
            if b <= moves.STANDING:
                goes_on &= moved <= moves.NEAR * self.step * toward
                self.euler &= moved <= moves.EULER * moves.STANDING * toward
                continue
            ratio = (v * w).sum().item() / toward**2 / b if toward else 0.0
            goes_on &= ratio > moves.UNRELATED if toward else moved == 0
            self.euler &= (w - b * v).norm().item() <= moves.EULER * b * toward
            factors.append(ratio)
        if not goes_on:
            self.known, self.rate = [], None
        return max(factors)
