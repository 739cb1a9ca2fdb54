"""The method "forecast" in ComfyUI once more: slow and plain, every value kept, Python numbers.

It shares the constants of the method with the engine, and nothing else.
"""

import functools
import math

import comfy.k_diffusion.sampling
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.utils

from foresight.engine import forecast, history, moves, plan, schedule, trajectory
from foresight.hosts.comfyui.replay import amplification, most_taken, order
from foresight.hosts.comfyui.run import TAKES_BACK

WRAPPERS = comfy.patcher_extension.WrappersMP


class Again(BaseException):
    pass


class Reference:
    """`Reference(gamma)(patcher)` is a clone whose runs follow the method: every value kept, Python numbers, no engine.

    `computed` counts the computed evaluations of all runs, and `missed` has what a forecast for each of them would have
    missed, by part and item. What must stay the same for a forecast is not looked at.
    """

    def __init__(self, gamma: float):
        self.gamma, self.computed, self.missed = gamma, 0, []

    def __call__(self, patcher):
        patched = patcher.clone()
        patched.add_wrapper_with_key(WRAPPERS.OUTER_SAMPLE, "reference", self._outer_sample)
        return patched

    def _outer_sample(self, executor, noise, latent, sampler, sigmas, mask=None, *args, **kwargs):
        guider = executor.class_obj
        self.shapes = kwargs.get("latent_shapes")
        self.sigmas, self.sampling = sigmas.tolist(), guider.model_patcher.get_model_object("model_sampling")
        self.flow = isinstance(self.sampling, comfy.model_sampling.CONST)
        self.order = order(sampler)
        self.made = 1.0 if mask is None else (mask > 0).to(noise)  # what no mask keeps
        self.most_taken = most_taken(sampler)
        euler = comfy.k_diffusion.sampling.sample_euler
        self.pays = getattr(sampler, "sampler_function", None) is euler and mask is None
        self.percents, self.tape, self.at = {}, [], 0  # the tape: (u, left out, what was given)
        self.counted = self.gamma
        one_cond = guider.predict_noise.__qualname__ == "CFGGuider.predict_noise" and guider.cfg == 1
        if one_cond and self.pays and not any("sampler" in key for key in guider.model_options):
            whole = (len(self.sigmas) - 1) / (self.over(self.sigmas[-1]) - self.over(self.sigmas[0]))
            self.counted *= min(max(1.0, 16 / whole), 2.0) ** 2
        self.mu = plan.MU * self.counted / amplification(sampler)
        self.begin()
        self.last, self.step, self.renewed = None, 0.0, False
        found = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(found)
        for kind, wrapper in (
            (WRAPPERS.PREDICT_NOISE, self._predict_noise),
            (WRAPPERS.SAMPLER_SAMPLE, self._sampler_sample),
        ):
            comfy.patcher_extension.add_wrapper_with_key(
                kind, "reference", wrapper, guider.model_options, is_model_options=True
            )
        try:
            return executor(noise, latent, sampler, sigmas, mask, *args, **kwargs)
        finally:
            guider.model_options = found

    def begin(self):
        self.known, self.lams, self.bent, self.left_out = [], [], 0.0, []
        self.euler, self.next, self.jumped, self.shown = True, None, False, None
        self.noisy, self.moved = True, False

    def _sampler_sample(self, executor, guider, sigmas, extra, callback, noise, *args, **kwargs):
        while True:
            try:
                self.at = 0
                return executor(guider, sigmas, dict(extra), callback, noise.clone(), *args, **kwargs)
            except Again:
                pass

    # ---- the plan

    def over(self, sigma):
        if sigma not in self.percents:  # slow, and asked for the same few levels again and again
            self.percents[sigma] = self.percent_of(sigma)
        return self.percents[sigma]

    def percent_of(self, sigma):
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            if float(self.sampling.percent_to_sigma(middle)) > sigma:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def weights(self, sigma):
        """Of the video and of the noise in the latent, both in the size of the video."""
        if self.flow:
            return 1 - sigma, sigma * getattr(self.sampling, "noise_scale", 1.0)
        return 1.0, sigma / self.sampling.sigma_data

    def share(self, sigma):
        video, noise = self.weights(sigma)
        return noise / (video + noise)

    def lam(self, sigma):
        noise = min(max(self.share(sigma), 1e-6), 1 - 1e-6)
        return min(max(math.log(1 / noise - 1), schedule.NOISIEST), schedule.CLEAREST)

    def bend(self, lam):
        return plan.FLAT + plan.BUMP * math.exp(-((lam - plan.WHERE) ** 2))

    def costs(self, n, m):
        """What leaving out the steps between n and m costs, where outputs bend as expected."""
        s, cost = self.sigmas, 0.0
        lam = [self.lam(sigma) + k * plan.STILL for k, sigma in enumerate(s)]
        for k in range(n + 1, m):
            weight = max(self.share(s[k]) - self.share(s[k + 1]), plan.FLOOR)
            weight *= 1 + plan.AT_ONCE * weight
            weight /= max(1 - self.share(s[k]), 0.005) ** plan.EARLY
            cost += self.bend(self.lam(s[k])) * weight * (lam[k] - lam[n]) * math.sqrt(lam[m] - lam[n])
        return cost

    def following(self, n, scale):
        """The step to compute after n, by trying everything."""
        s, steps = self.sigmas, len(self.sigmas) - 1
        exact = 1 if s[-1] > 0 else max(self.counted <= 32, round(self.order / max(1, self.counted)))
        last = max(exact, round(forecast.LAST * steps)) + (s[-1] > 0 and self.pays)
        most = max(math.ceil(min(0.13 * max(1, self.counted), 0.2) * steps), math.floor(min(3, self.counted)))

        @functools.cache
        def rest(n):
            found = []
            for m in range(n + 1, steps + 1):
                gap = [k for k in range(n + 1, m)]
                if len(gap) > most or any(k >= steps - last for k in gap):
                    break
                behind = (0.0, steps) if m == steps else (rest(m)[0] + self.mu, m)
                found.append((scale * self.costs(n, m) + behind[0], m))
            return min(found)

        return rest(n)[1]

    # ---- an evaluation

    def _predict_noise(self, executor, x, timestep, *args, **kwargs):
        at, self.at = self.at, self.at + 1
        sigma, s, steps = float(timestep.max()), self.sigmas, len(self.sigmas) - 1
        if at < len(self.tape):
            if at == len(self.tape) - 1 and self.last is not None:
                self.last = x.clone(), *self.last[1:]
            return self.tape[at][2].clone()
        i = max(k for k in range(steps) if s[k] >= sigma * (1 - 1e-4) or k == 0)
        u = i + max(0.0, (s[i] - sigma) / (s[i] - s[i + 1]))
        price, idle = self._move(x, sigma)
        self._take_back(price)
        slope = len(self.known) == 2
        held = len(self.known) == 1 and self.holds and self.euler
        if (slope or held) and not idle and i > self.known[-1][0] + 1e-3:
            if self.next is None:
                n = int(self.known[-1][0] + 1e-3)
                self.next = self.following(n, max(trajectory.LEAST, math.exp(self.bent)) * price)
            if i < self.next:
                return self._leave_out(x, sigma, u)
        return self._compute(x, sigma, u, executor(x, timestep, *args, **kwargs))

    def _take_back(self, price):
        """Begin again behind the last computed evaluation but one, if what was left out since then cost too much."""
        shown, self.shown = self.shown, None
        if shown is None:
            return
        ratio, u_n, u_m = shown
        n, m = int(u_n + 1e-3), int(u_m + 1e-3)
        if m - n < 2 or self.pays and u_m > TAKES_BACK * max(8, len(self.sigmas) - 1):
            return
        if ratio * price * self.costs(n, m) > self.mu * (m - n):
            while self.tape[-1][0] > u_n + 1e-6:
                self.tape.pop()
            self.known, self.holds = [point for point in self.known if point[0] < u_m - 1e-6], False
            self.lams, self.left_out, self.last = self.lams[:1], [], None
            self.euler, self.next, self.bent = True, None, max(self.bent, math.log(ratio))
            raise Again

    def line(self, u):
        if len(self.known) == 1:
            return self.known[-1][1]
        (u0, d0), (u1, d1) = self.known
        return d1 + (d1 - d0) / (u1 - u0) * self.reach(u - u1)

    def reach(self, h):
        if self.moved and self.noisy:
            return 0.0
        whole = (len(self.sigmas) - 1) / (self.over(self.sigmas[-1]) - self.over(self.sigmas[0]))
        return h / (1 + max(h, 0) / (history.DAMPING * whole))

    def _leave_out(self, x, sigma, u):
        guess = self.line(u)
        self.left_out.append((u, self.a(sigma)))
        self.last = x.clone(), guess.clone(), sigma
        self.tape.append((u, True, guess.clone()))
        return guess.clone()

    def rows(self, tensor):
        """Every item of the batch, and of a latent of several parts every part of it."""
        parts = comfy.utils.unpack_latents(tensor, self.shapes) if self.shapes else [tensor]
        return [item.double() for part in parts for item in part]

    def a(self, sigma):
        after = [s for s in self.sigmas if s < sigma * (1 - 1e-4)]
        return min(after[0] / sigma, 1) if after and sigma else 0.0

    def _compute(self, x, sigma, u, out):
        self.computed += 1
        given, a, lam, n_known, self.shown = out, self.a(sigma), self.lam(sigma), len(self.known), None
        again = bool(self.known) and abs(u - self.known[-1][0]) < 1e-3
        if again:
            self.known.pop()
        elif self.known:
            (u1, d1), missed = self.known[-1], self.line(u) - out
            taken = x / sum(self.weights(sigma)) - out  # of the latent that a flow model would have
            pairs = zip(self.rows(missed * self.made), self.rows(taken * self.made), strict=True)
            most = 1.2 * self.share(sigma) if self.shapes and len(self.shapes) > 1 else math.inf
            self.missed.append([(m.norm() / d.norm().clamp_max(most * d.numel() ** 0.5)).item() for m, d in pairs])
            self._learn(max(self.missed[-1]), lam, n_known == 2, u1, u)
            owed = 0
            for v, b in self.left_out:
                before = self.line(v) - d1 if n_known == 2 else 0 * d1
                owed = b * owed + (1 - b) * (before - (out - d1) / (u - u1) * (v - u1))
            last = self.sigmas[-1] > 0 and u > len(self.sigmas) - 2.5
            if self.left_out and a and self.euler and self.pays and not last:
                given = out - a / (1 - a) * owed
        if not again:
            self.lams = [*self.lams[-1:], lam]
        if not self.known and not again:
            self.holds = self.over(sigma) <= history.HOLDS_UNTIL
        self.known = [*self.known[-1:], (u, out.clone())]
        if self.jumped:
            self.known, self.holds, self.jumped = self.known[-1:], False, False
        self.euler, self.next = True, None
        self.last = x.clone(), given.clone(), sigma
        self.tape.append((u, False, given.clone()))
        gap, self.left_out = self.left_out, []
        if gap and not self.pays:
            self._mend()
        return given

    def _mend(self):
        m = len(self.tape) - 1
        n = max(k for k in range(m) if not self.tape[k][1])
        (u_n, _, d_n), (u_m, _, d_m) = self.tape[n], self.tape[m]
        for k in range(n + 1, m):
            u = self.tape[k][0]
            self.tape[k] = u, True, d_n + (d_m - d_n) * ((u - u_n) / (u_m - u_n))
        raise Again

    def _learn(self, e, m, sloped, u_n, u_m):
        if not e:
            return
        n, least = self.lams[-1], trajectory.NEAR
        late = self.over(self.sigmas[0]) > history.HOLDS_UNTIL
        held = self.bend((n + m) / 2) if late else trajectory.HELD
        expected = min(e, max(held * (m - n), trajectory.ROUNDING))
        if sloped:
            expected = self.bend((n + m) / 2) * max(m - n, least) * math.sqrt(max(m - self.lams[0], least))
        bend = max(1.0, math.exp(self.bent))
        self.jumped = e > min(max(trajectory.JUMP * bend * expected, trajectory.ROUNDING), trajectory.FAR)
        ratio = min(max(e / expected, 1 / trajectory.MOST), trajectory.MOST)
        if sloped and m - n < trajectory.NEAR and max(1.0, ratio) >= bend:
            return
        self.shown = ratio, u_n, u_m
        begins = not sloped and not self.bent and len(self.lams) == 1 and n <= schedule.NOISIEST
        weight = 1 if begins else trajectory.NEWEST
        self.bent += weight * (math.log(ratio) - self.bent)

    def _move(self, x, sigma):
        """How much more than Euler's step the sampler took in, and whether it was given its latent again."""
        if self.last is None:
            return 1.0, False
        before, given, level = self.last
        b, factors, goes_on, idle = (
            1 - sigma / level,
            [1.0],
            sigma <= level * (1 + 1e-4),
            sigma < level * (1 - moves.STANDING),
        )
        idle = b > moves.STANDING
        self.step = b if b > moves.STANDING and goes_on else self.step
        self.renewed &= b <= moves.STANDING
        step = (x - before) * self.made
        counts = (step != 0) | ~(step != 0).any()  # what stands still is kept, if not all of it does
        for v, w in zip(self.rows((given - before) * counts), self.rows(step), strict=True):
            toward, moved = v.norm().item(), w.norm().item()
            if b <= moves.STANDING:
                goes_on &= moved <= moves.NEAR * self.step * toward
                self.euler &= moved <= moves.EULER * moves.STANDING * toward
                continue
            idle &= not toward
            ratio = (v * w).sum().item() / toward**2 / b if toward else 0.0
            goes_on &= ratio > moves.UNRELATED if toward else moved == 0
            self.euler &= (w - b * v).norm().item() <= moves.EULER * b * toward
            new = (w - ratio * b * v).norm().item() / toward if toward else 0.0  # at right angles to v
            self.renewed |= new > moves.RENEWED
            factors.append(ratio)
        if self.pays and not self.euler and self.order < 3:  # nothing corrects it, so it may be UniPC
            self.order, self.next = 3, None
        if not goes_on:
            self.begin()
            return max(factors), idle
        self.noisy, self.moved = self.noisy and self.renewed, True
        return min(max(factors), self.most_taken if self.noisy else math.inf), idle
