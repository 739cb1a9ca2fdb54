"""One sampler run in ComfyUI: the wrappers that feed the engine."""

import functools
import logging
import math
from collections.abc import Callable, Sequence

import comfy.model_patcher
import comfy.patcher_extension
import torch

from ...engine import Config, Run, RunStats
from ...engine.compiler import outside_graphs
from ...engine.tape import Tape
from ...engine.tensors import Tensors, format_bytes
from .. import blocks
from ..blocks import Section, UnsupportedModel, family_of
from ..ranks import ranks_of
from . import keyframes, memory, stages
from .changes import Edges, Kept, Numbers, has_kept
from .compiled import is_compiled, without_wrappers
from .conds import StreamKeys, active_conds, follow_keyframes, trajectory_of, transformer_options
from .families import FAMILIES, ComfyFamily, keeps_state
from .levels import Levels, Noise
from .outputs import Parts, SamplerFunctions
from .replay import Replay, amplification, is_adaptive, most_taken, order, takes_euler_steps
from .wrappers import Wrapper

WrappersMP = comfy.patcher_extension.WrappersMP
KEY = "foresight"
TAKES_BACK = 0.25  # share of a run's steps, at its beginning, after which Euler's method takes back nothing any more
SHORT = 8  # steps; in a shorter run, that share of so many: before step 2 there is nothing to take back

log = logging.getLogger(__package__)


class SamplerRun(Wrapper):
    """One sampler run: a `Run` of the engine and the wrappers that feed it. Exists inside OUTER_SAMPLE only.

    Args:
        config: The user's settings.
        model_patcher: Of the guider that samples.
        sigmas: Noise levels of the run, (steps + 1,).
        cfg: The guider's, None where it has none.
        watch: Called at the beginning of every evaluation.
        shapes: Of the parts of a packed latent.
        sampler: ComfyUI's object of it.
        denoise_mask: What of the latent is to be sampled; None for all.
        guided: See `conds.is_guided`.

    Attributes:
        speaks: Whether this process writes the summary to the log, among those that decide alike.
    """

    def __init__(
        self,
        config: Config,
        model_patcher,
        sigmas: torch.Tensor,
        cfg: float | None = None,
        watch: Callable[[], None] | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
        sampler: object = None,
        denoise_mask: torch.Tensor | None = None,
        guided: bool = True,
    ):
        self._config, self._cfg, self._guided, self._watch = config, cfg, guided, watch
        schedule, self._steps = sigmas.tolist(), len(sigmas) - 1
        model_sampling = model_patcher.get_model_object("model_sampling")
        # the two ends of the range mean "no bound", whatever a model takes for its first and last sigma
        levels, self._noise = Levels(model_sampling), Noise(model_sampling)
        highest = levels.sigma(config.start_percent) if config.start_percent > 0 else math.inf
        lowest = levels.sigma(config.end_percent) if config.end_percent < 1 else -math.inf
        self._keys, self._functions = StreamKeys(), SamplerFunctions()
        self._parts = Parts(shapes, getattr(model_sampling, "audio_scale", 1.0), denoise_mask)
        ranks = ranks_of(model_patcher.get_model_object("diffusion_model"))
        self.speaks = ranks.first
        self._run = Run(
            config,
            schedule=schedule,
            region=(highest, lowest),
            offload=memory.offload(config),
            inactive=ranks.never or _why_not(sampler),
            noise=self._noise.share,
            over=levels.over,
            tape=_tape(sampler, denoise_mask, self._steps, alone=ranks.worst is None),
            worst=ranks.worst,
            parts=self._parts.names,
            guided=guided,
            whole=stages.whole_of(schedule[-1]),
        )
        self._stacks: dict[torch.nn.Module, tuple[ComfyFamily | None, list[tuple[torch.nn.Module, Section]]]] = {}
        self._edges, self._numbers, self._kept = Edges(levels.sigma, schedule, but=KEY), Numbers(), Kept()
        self._brought: set[str] = set()  # names of the options that are there before the first evaluation

    @property
    def stats(self) -> RunStats:
        """The record of the run, filled in as it goes on."""
        return self._run.stats

    def install(self, model_options: dict) -> dict:
        """A clone of a guider's model options with this run's wrappers in it."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        self._brought = set(options)
        wrappers = [
            (WrappersMP.PREPARE_SAMPLING, self._prepare_sampling),
            (WrappersMP.PREDICT_NOISE, self._predict_noise),
        ]
        if self._config.by_block:
            wrappers += [
                (WrappersMP.CALC_COND_BATCH, self._calc_cond_batch),
                (WrappersMP.DIFFUSION_MODEL, self._diffusion_model),
                (WrappersMP.APPLY_MODEL, self._apply_model),
            ]
        for kind, wrapper in wrappers:
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, options, is_model_options=True)
        if self._run.may_restart:
            Replay(self._run, self._parts, self._functions).install(options)
        return options

    def end(self, broken_off: bool = False) -> RunStats | None:
        """Drop everything stored; what the run did, or None when even that can't be read (the device is in error)."""
        try:
            return self._run.close(broken_off=broken_off)
        except Exception:
            log.warning("Foresight could not read its last measurements", exc_info=True)
            return None

    def _prepare_sampling(self, executor, model, noise_shape, conds, *args, **kwargs):
        """Let ComfyUI plan for what will be stored: it sizes by the model's memory factor. `model` is the patcher."""
        patcher, model, shape = model, model.model, tuple(noise_shape)
        family, stack = self._stack(model.diffusion_model) if self._config.by_block else (None, [])
        need = memory.planned_bytes(self._run, model, family, len(stack), shape, conds, self._cfg)
        usual, found = model.memory_required(list(noise_shape)), model.memory_usage_factor
        if not self._run.stats.inactive:
            held = f"about {format_bytes(need)} will be held" if need else "the memory held is known later"
            held = "what is stored waits in RAM" if self._config.cache_device == "cpu" else held
            plan = f"at most {self._run.most_reuse} of {self._steps} steps can be reused"
            if self.stats.planned is not None:
                plan = f"plan: {self.stats.plan}"
            log.info("Foresight: %s, %s", plan, held)
        if need and usual:
            model.memory_usage_factor = found * (usual + need) / usual
        try:
            return executor(patcher, noise_shape, conds, *args, **kwargs)
        finally:
            model.memory_usage_factor = found

    def _predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        options = model_options or {}
        self._look(executor.class_obj, options)
        if self._run.evaluation <= 0:  # before the first evaluation, and again when its activations are known
            self._set_budget(x.device)
        trajectory = trajectory_of(options) + self._numbers.of(options, self._level)
        self._run.begin_evaluation(timestep, self._parts.made(x), trajectory)
        if self._watch is not None:
            self._watch()
        self._keys.begin_evaluation(trajectory)
        if self._run.kind == "plain":
            return self._run.output("denoised", None, lambda: (executor(x, timestep, options, seed),), x.device)[0]
        guider = executor.class_obj
        functions = self._functions.among(options, guider)
        computed, made = [], []

        def compute() -> Tensors:
            with self._functions.watched(options, guider):
                computed.append(executor(x, timestep, options, seed))
            if not isinstance(computed[0], torch.Tensor):  # LanPaint's has two latents in one
                if not self._config.by_block:  # which does not look at it
                    self._run.deactivate("another pack's guider gives something else than a latent", everywhere=True)
                return (x,)
            latents = self._functions.take() if functions else (computed[0],)
            if not latents:
                self._run.deactivate("the guider does not call the functions that the sampler brings", everywhere=True)
            made[:] = [part for latent in latents or computed for part in self._parts.split(latent)]
            return tuple(made)

        active, sides = self._active_conds(guider, timestep, options), self._edges.sides(options, self._level, guider)
        form = x.shape, x.dtype, x.device, len(functions), self._numbers.changes + self._kept.changes
        unit = functools.partial(self._parts.unit, x, self._noise.size(self._level), self._noise.share(self._level))
        # behind the guider there is one output, whatever the conds, windows and passes
        outputs = self._run.output("denoised", (*form, active, sides), compute, x.device, unit)
        if computed and not isinstance(computed[0], torch.Tensor):
            return computed[0]
        if functions and computed and all(a is b for a, b in zip(outputs, made, strict=True)):
            return computed[0]  # as the sampler's functions have left it
        latents = self._parts.join(outputs)
        return self._functions.call(functions, latents, timestep, x) if functions else latents[0]

    def _set_budget(self, device: torch.device) -> None:
        held = 0 if self.stats.in_ram else self._run.held_bytes
        self._run.set_budget(*memory.budget(self._config, device, self._run.evaluation == 0, held))

    def _look(self, guider: object, options: dict) -> None:
        """End the run where the options say that every evaluation has to be computed."""
        if keeps_state(options) and not self.stats.inactive:
            self._run.deactivate("the model writes a KV cache in each evaluation", everywhere=True)
        if self._config.by_block or self.stats.inactive:
            return
        self._kept.look(getattr(guider, "model_options", {}))
        if self._kept.changes > 1 or has_kept(options, self._brought):
            self._run.deactivate("a guidance node goes by what it saw before (APG with a momentum)", everywhere=True)
        groups = keyframes.groups_in(options.get("transformer_options", {}), KEY) if self._run.evaluation <= 0 else ()
        for group in groups:
            self._run.restart_no_more("keyframes of another pack only go forward")
            self._edges.begin_at(keyframes.begin(group))
            if keyframes.last(group):
                self._run.deactivate(
                    "another pack's keyframes last for a number of evaluations (guarantee_steps)", everywhere=True
                )

    def _active_conds(self, guider, timestep: torch.Tensor, options: dict) -> tuple:
        both = self._guided or options.get("disable_cfg1_optimization")  # as samplers of CFG++ have it
        conds = {name: found for name, found in guider.conds.items() if both or name == "positive"}
        follow_keyframes(conds, self._level, guider, timestep, options)
        return active_conds(conds, self._level)

    @property
    def _level(self) -> float | None:
        """Of the newest evaluation, known already: to read the device again would make it wait."""
        evaluations = self._run.stats.evaluations
        return evaluations[-1].level if evaluations else None

    def _calc_cond_batch(self, executor, *args, **kwargs):
        self._keys.begin_pass()
        return executor(*args, **kwargs)

    @outside_graphs(recursive=False)
    def _apply_model(self, executor, x, *args, **kwargs):
        """In place of `_diffusion_model` for models that do not call its wrappers, or are compiled as a whole."""
        model, wrapped = executor.class_obj.diffusion_model, False
        if is_compiled(model):
            wrapped, args, kwargs = None, *without_wrappers(KEY, args, kwargs)
        return self._around(getattr(model, "_orig_mod", model), wrapped, executor, x, args, kwargs)

    @outside_graphs(recursive=False)
    def _diffusion_model(self, executor, x, *args, **kwargs):
        return self._around(executor.class_obj, True, executor, x, args, kwargs)

    def _stack(self, model: torch.nn.Module) -> tuple[ComfyFamily | None, list[tuple[torch.nn.Module, Section]]]:
        """Family and blocks of a model, looked up once a run; (None, []) for one that is not supported."""
        if model not in self._stacks:
            try:
                family = family_of(model, FAMILIES, advice="There is nothing to do.")
                self._stacks[model] = family, family.stack(model)
            except UnsupportedModel as error:  # a guider's second model, say: its calls stay plain
                log.info("Foresight leaves the guider's second model as it is: %s", error)
                self._stacks[model] = None, []
        return self._stacks[model]

    @outside_graphs(recursive=False)
    def _around(self, model: torch.nn.Module, wrapped: bool | None, executor, x, args: tuple, kwargs: dict):
        """One call of the model."""
        family, stack, keys = self._call_of(model, wrapped, x, args, kwargs)
        if family is None:
            return executor(x, *args, **kwargs)
        forward = functools.partial(executor, x, *args, **kwargs)
        return blocks.run_blocks(self._run, stack, keys, forward, family.batch_dim or 0, whole=wrapped is None)

    @outside_graphs()
    def _call_of(self, model: torch.nn.Module, wrapped: bool | None, x, args: tuple, kwargs: dict) -> tuple:
        """The model's family, its stack and the keys of the call's streams; None for a call that stays plain.

        `wrapped` is None where this is the only place at which the call comes by.
        """
        family, stack = self._stack(model)
        options = transformer_options(args, kwargs)
        if family is None or options is None:
            return None, stack, []
        if wrapped is (family.plain_with in options or not family.wrapped):  # with state, not all call wrappers
            return None, stack, []
        latent = x[0] if isinstance(x, list) else x  # video and audio come as a list
        with self._run.lock:
            keys = self._keys.of_call(model, options, latent.device)
        if family.batch_dim is None:
            keys = [tuple(keys)]
        if family.prefetches and self._run.kind == "reuse":
            options["prefetch_dynamic_vbars"] = False  # weights of blocks that run are then fetched when needed
        return family, stack, keys


def _tape(sampler: object, denoise_mask: torch.Tensor | None, steps: int, alone: bool) -> Tape | None:
    """The tape of a run. Euler's method is paid back what forecasts leave, and needs none but to take them back."""
    if takes_euler_steps(sampler, denoise_mask):
        return Tape(until=TAKES_BACK * max(steps, SHORT)) if alone else None
    return Tape(amplification(sampler), order(sampler), most_taken=most_taken(sampler))


def _why_not(sampler: object) -> str | None:
    """Why the method must not be used with a sampler, or None."""
    if is_adaptive(sampler):
        return "an adaptive sampler chooses its noise levels by how outputs differ, which a forecast would spoil"
    return None
