"""The hook on a transformer: one run of the engine per run of the pipeline."""

import functools
import inspect
import logging
import time
from collections.abc import Callable, Hashable, Mapping

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import StateManager
from torch.utils._pytree import tree_leaves

from ...engine import Config, Offload, Run, RunStats
from ...engine.compiler import outside_graphs
from ...engine.tensors import Tensors, read_level
from .. import blocks
from ..ranks import Ranks, ranks_of
from .families import family_for
from .latents import Latents, alike, channels_of, is_near, latents_of, names_of
from .levels import Scheduled, levels_of, scale_of
from .outputs import Result, View
from .signs import Signs
from .streams import Streams
from .threads import Threads

log = logging.getLogger(__package__)


class ForesightHook(ModelHook):
    """Stands between a pipeline and its transformer. A run ends when the pipeline resets its stateful hooks.

    Without a reset it ends where the noise level rises, or `Signs` or another prompt say so. An error ends it at once.

    Args:
        config: The user's settings.
        steps: Denoising steps of a run, where the user says it.
        group: The processes that decide alike, where the user says it.
        scheduler: Gives the pipeline's scheduler, None where nobody has told which pipeline it is.
    """

    _is_stateful = True

    def __init__(
        self, config: Config, steps: int | None, group=None, scheduler: Callable[[], object | None] = lambda: None
    ):
        super().__init__()
        self._config, self._steps, self._group = config, steps, group
        self._scheduled = Scheduled(scheduler)
        self.began = 0.0  # the newest run, by `time.monotonic`
        self._ranks = Ranks()
        self._contexts = StateManager(dict)  # diffusers tells stateful hooks' state managers which context a call is in
        self._run: Run | None = None
        self._stats: RunStats | None = None
        self.removed = False  # somebody may have kept the forward that it was in
        self._threads, self._has_learned = Threads(), False
        self._context = None  # of the newest call
        self._parts: tuple[str, ...] = ()  # names of those of the latent
        self._begin_run()

    def _begin_run(self) -> None:
        self._streams = Streams()
        self._last_level: float | None = None
        self._signs = Signs()
        self._before: Tensors = ()  # the latents of the newest evaluation
        self._scale = 1.0  # levels over shares of noise
        self._latents = Latents()
        self._forms: dict[str, Result] = {}  # by stream
        self._threads.end_run()
        self._scheduled.end()

    @property
    def stats(self) -> RunStats | None:
        """The run under way, else the last one, else None."""
        return self._run.stats if self._run is not None else self._stats

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self._family, self._module = family_for(module, self._config), module
        self._rises, self._top = self._family.rises > 0, self._family.rises
        self._stack = self._family.stack(module) if self._config.by_block else []
        self._signature, self._channels = inspect.signature(type(module).forward), channels_of(module)
        return module

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: torch.nn.Module, *args, **kwargs):
        self._threads.enter()
        try:
            if self._passes(module, args, kwargs):
                return self.fn_ref.original_forward(*args, **kwargs)
            return self._forward(module, args, kwargs)
        finally:
            self._threads.leave()

    @torch.compiler.disable(recursive=False)
    def _forward(self, module: torch.nn.Module, args: tuple, kwargs: dict):
        try:
            call = self._enter(module, args, kwargs)
            return self.fn_ref.original_forward(*args, **kwargs) if call is None else self._output(*call, args, kwargs)
        except BaseException:
            self._end_interrupted_run()
            raise

    @outside_graphs()
    def _passes(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> bool:
        """Whether a call is none of ours.

        So it is where gradients are wanted of it, which would not be those of a forecast, and where another thread is
        in the transformer: a video each, and nothing tells whose the next evaluation is.
        """
        if self._threads.crowded and self._threads.mine and self._run is not None and not self._run.stats.inactive:
            self._run.deactivate("two threads use the transformer at the same time", everywhere=True)
        learns = torch.is_grad_enabled() and _requires_grad(module, args, kwargs)
        if learns and not self._has_learned:
            log.warning("Foresight: gradients are wanted, so that everything is computed; torch.no_grad() changes that")
        self._has_learned |= learns
        return self.removed or learns or self._threads.crowded

    @outside_graphs()
    def _enter(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[str, Hashable, Tensors] | None:
        """Begin the evaluation if a call is its first: the call's stream, its signature and its latents.

        None where the blocks write a cache of their own, so that each of them must run.
        """
        arguments = self._signature.bind_partial(module, *args, **kwargs).arguments
        if self._family.plain_with and arguments.get(self._family.plain_with) is not None:
            return None
        try:
            self._context = self._contexts.context
        except ValueError:  # a pipeline without contexts
            self._context = None
        timestep, latents = arguments.get(self._family.timestep), latents_of(self._family, arguments, self._channels)
        near = functools.partial(is_near, latents, self._before)
        other = self._run is not None and (
            self._scheduled.is_over or self._signs.of_another_run(self._context, timestep, near)
        )
        if other:
            self.end_run()
        of_call = getattr(self._context, "name", None), timestep, self._rest(arguments), latents
        name, begins = self._streams.of_call(*of_call)
        changed = begins and other is None and self._streams.changed and self._ranks.worst is None
        if changed and alike(latents, self._before) and not near():  # another prompt, and another video
            self.end_run()
            name, begins = self._streams.of_call(*of_call)
        if begins:
            self._parts = names_of(self._family, arguments)
            self._begin_evaluation(timestep, name, latents)
        else:
            self._latents.look(name, latents)
        self._signs.note(self._context, timestep, begins)
        kept = (x for x in tree_leaves((args, kwargs)) if isinstance(x, (torch.Tensor, str, bool)))
        form = tuple((x.shape, x.dtype, x.device) if isinstance(x, torch.Tensor) else x for x in kept)
        return name, (form, self._streams.breaks(name), self._latents.found(name, latents)), latents

    def _rest(self, arguments: Mapping) -> dict:
        others = ("self", self._family.timestep, *self._family.latents)
        return {key: value for key, value in arguments.items() if key not in others}

    def _level_of(self, timestep: torch.Tensor | None) -> torch.Tensor | float | None:
        """The noise level: what the context says, which needs no read of the device, or the timestep."""
        sigma = getattr(self._context, "sigma", None)
        if self._family.flow and isinstance(sigma, float) and 0 <= sigma <= 1:
            return sigma
        return self._top - timestep if self._rises and timestep is not None else timestep

    def _begin_evaluation(self, timestep: torch.Tensor | None, name: str, latents: Tensors) -> None:
        parts, level = self._latents.begin(name, latents), self._level_of(timestep)
        checked = self._run is not None
        level = self._scheduled.exact(self._run.read_back(level, parts) if checked else read_level(level))
        if level is not None and self._last_level is not None and level > self._last_level:
            streams, checked = self._streams, False  # which know already that an evaluation begins
            level = self._turn(level, latents)
            self.end_run()
            self._streams, parts = streams, self._latents.begin(name, latents)
        if self._run is None:
            self._run = self._new_run(level, timestep)
            level = self._scheduled.exact(level)
            if self._ranks.worst is not None:  # whose tokens stay as they are has a level of its own
                level, checked = self._scheduled.exact(self._run.read_back(level, parts)), True
                self._scale = scale_of(level)
        self._run.begin_evaluation(level, None if checked else parts)
        self._last_level, self._before = level, latents

    def _turn(self, level: float, latents: Tensors) -> float:
        """The level, counted the other way where a model without a record turns out to have timesteps that rise.

        That is so where the second evaluation goes on from the first one's latents, and is no run of its own.
        """
        if self._family.known or len(self._run.stats.evaluations) > 1 or not is_near(latents, self._before):
            return level
        if not self._rises:
            self._top = 1000.0 if level > 1 else 1.0
        self._rises = not self._rises
        return self._top - level

    def _new_run(self, level: float | None, timestep: torch.Tensor | None) -> Run:
        self._threads.begin_run()
        self._ranks = ranks_of(self._module, self._group)
        self.began, self._scale = time.monotonic(), scale_of(level)
        listed, first, steps = self._scheduled.begin(level, self._family.flow, self._ranks.worst)
        if not listed:
            steps = getattr(self._context, "num_inference_steps", None) or self._steps
            first, top = getattr(self._context, "step_index", None), self._top if self._rises else None
            listed, place = levels_of(timestep, level, top, steps and steps - (first or 0))
            first = first if steps else place
        run = Run(
            self._config,
            steps=steps,
            noise=self._share if self._family.flow and level is not None else None,
            offload=Offload.of(self._config.cache_device),
            inactive=self._ranks.never,
            worst=self._ranks.worst,
            first_step=first,
            listed=listed,
            blended=True,
            parts=self._parts,
        )
        run.set_budget(int(self._config.cache_budget_gb * 2**30) or None, None)
        return run

    def _share(self, level: float) -> float:
        """Share of noise of a flow model at a level."""
        return min(1.0, level / self._scale)

    @torch.compiler.disable(recursive=False)
    def _output(self, name: str, signature: Hashable, latents: Tensors, args: tuple, kwargs: dict):
        """The transformer's result, computed or forecast."""
        # the run may be ended while the model computes: the hook is taken off, or another thread is done
        run, forms, computed, view = self._run, self._forms, [], self._view(name, latents)
        plain = run.kind == "plain"

        @torch.compiler.disable(recursive=False)
        def compute() -> Tensors:
            result = self._compute(run, name, args, kwargs)
            forms[name], seen = self._seen(run, result, view, plain)
            computed[:] = [result, seen]
            return seen

        output = run.output(name, signature, compute, latents[0].device, view.unit)
        return self._returned(forms[name], computed, output, view)

    @torch.compiler.disable(recursive=False)
    def _compute(self, run: Run, name: str, args: tuple, kwargs: dict):
        forward = functools.partial(self.fn_ref.original_forward, *args, **kwargs)
        if self._config.by_block:
            return blocks.run_blocks(run, self._stack, [name], forward, self._family.batch_dim or 0)
        return forward()

    @outside_graphs()
    def _view(self, name: str, latents: Tensors) -> View:
        sigma = None
        if self._family.flow and self._last_level is not None:
            sigma = self._share(self._last_level) * (-1 if self._rises else 1)
        return View(latents, self._latents.conds(name, latents), sigma, several=len(self._parts) > 1)

    @outside_graphs()
    def _seen(self, run: Run, result: object, view: View, plain: bool) -> tuple[Result, Tensors]:
        """The form of a result, and what the engine sees of it."""
        form = Result(result)
        fits = view.fits(form.tensors)
        if not fits and not run.stats.inactive:
            run.deactivate("what the model returns does not have the form of its latents", everywhere=True)
        seen = view.seen(form.tensors) if fits and not plain else form.tensors
        return form.without_tensors(), seen

    @outside_graphs()
    def _returned(self, form: Result, computed: list, output: Tensors, view: View):
        """The result as the pipeline gets it: the model's own where the engine has left it as it is."""
        if computed and all(a is b for a, b in zip(computed[1], output, strict=True)):
            return computed[0]
        return form.like(view.returned(output))

    @outside_graphs()
    def end_run(self, broken_off: bool = False) -> None:
        """Close the run under way, if any, and log what it did."""
        if self._run is not None:
            self._stats, self._run = self._run.close(timed=False, broken_off=broken_off), None
            if self._ranks.first:  # of those who decide alike, one speaks
                log.info("Foresight %s", self._stats.summary())
        self._begin_run()

    def _end_interrupted_run(self) -> None:
        """The same on the way of an error, which nothing here may hide."""
        stats = self.stats
        try:
            self.end_run(broken_off=True)
        except Exception:
            log.warning("Foresight could not read its last measurements", exc_info=True)
            self._stats, self._run = stats, None
            self._begin_run()

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.end_run()
        self._contexts.reset()
        return module


def _requires_grad(module: torch.nn.Module, args: tuple, kwargs: dict) -> bool:
    given = (x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
    return any(x.requires_grad for x in (*given, *module.parameters()))
