"""Foresight in ComfyUI: wrappers on a ModelPatcher, stream keys, and the life of a run."""

import functools
import logging
import math
from collections import Counter
from collections.abc import Container

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import torch

from ...engine import Config, Offload, Run, RunStats
from ...engine.compiler import outside_graphs
from ...engine.tensors import format_bytes
from .. import families
from ..families import COMFYUI, Family, Section, UnsupportedModel, family_of
from . import live

WrappersMP = comfy.patcher_extension.WrappersMP
KEY = "foresight"
_RAM = torch.device("cpu")

log = logging.getLogger(__name__)


def apply_foresight(
    model_patcher: "comfy.model_patcher.ModelPatcher",
    config: Config,
    node_id: str | None = None,
    workflow_id: str | None = None,
) -> "comfy.model_patcher.ModelPatcher":
    """A clone of `model_patcher` whose sampler runs use Foresight; a Foresight applied before is replaced.

    Only the frozen `config` stays on the patcher: what a run stores is born and dropped inside the run.

    Raises:
        UnsupportedModel: the diffusion model's class is not in the table of families.
    """
    diffusion_model = getattr(model_patcher.model, "diffusion_model", model_patcher.model)
    family_of(getattr(diffusion_model, "_orig_mod", diffusion_model), COMFYUI)
    patched = model_patcher.clone()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    if config.off_reason:
        log.info("Foresight inactive: %s", config.off_reason)
    else:
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Template(config, node_id, workflow_id))
    return patched


def runs_on(model_patcher: "comfy.model_patcher.ModelPatcher", samplers: Container[str] | None = None) -> list[dict]:
    """What the newest sampler runs of a model with Foresight did, see `live.runs_of`; empty for one without."""
    templates = model_patcher.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(KEY, [])
    return [run for template in templates for run in live.runs_of(template, samplers)]


class _Template:
    """What the node leaves on the patcher: the OUTER_SAMPLE wrapper that begins and ends a run."""

    def __init__(self, config: Config, node_id: str | None, workflow_id: str | None):
        self.config, self.node_id, self._workflow_id = config, node_id, workflow_id

    def __call__(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        run = SamplerRun(self.config, guider.model_patcher, sigmas, getattr(guider, "cfg", None))
        run.watcher = watcher = live.Watcher(run.stats, self.node_id, self._workflow_id, owner=self)
        found = guider.model_options
        guider.model_options = run.install(found)
        try:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            guider.model_options = found
            stats = run.end()
            if stats is not None:
                log.info("Foresight %s", stats.summary())
                watcher.finish()
        return samples


class SamplerRun:
    """One sampler run: a `Run` of the engine and the wrappers that feed it. Exists inside OUTER_SAMPLE only."""

    def __init__(self, config: Config, model_patcher, sigmas: torch.Tensor, cfg: float | None = None):
        self._config, self._cfg, self._steps = config, cfg, len(sigmas) - 1
        model_sampling = model_patcher.get_model_object("model_sampling")
        # the two ends of the range mean "no bound", whatever a model takes for its first and last sigma
        highest = float(model_sampling.percent_to_sigma(config.start_percent)) if config.start_percent > 0 else math.inf
        lowest = float(model_sampling.percent_to_sigma(config.end_percent)) if config.end_percent < 1 else -math.inf
        offload = Offload(
            device=_RAM if config.cache_device == "cpu" else None,
            fallback=_RAM if config.cache_device == "auto" else None,
            # one of ComfyUI's streams for moving weights; each time it is asked, it gives the next of them
            copy_stream=functools.cache(comfy.model_management.get_offload_stream),
        )
        self._run = Run(
            config,
            schedule=sigmas.tolist(),
            region=(highest, lowest),
            offload=offload,
            noise=_flow_noise if isinstance(model_sampling, comfy.model_sampling.CONST) else _variance_noise,
        )
        self._stacks: dict[torch.nn.Module, tuple[Family | None, list[tuple[torch.nn.Module, Section]]]] = {}
        self._pass = -1  # CALC_COND_BATCH ordinal within the evaluation
        self._seen: Counter = Counter()  # what else makes a key, within the pass
        self.watcher: live.Watcher | None = None

    @property
    def stats(self) -> RunStats:
        """The record of the run, filled in as it goes on."""
        return self._run.stats

    def install(self, model_options: dict) -> dict:
        """A clone of a guider's model options with this run's wrappers in it."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        for kind, wrapper in (
            (WrappersMP.PREPARE_SAMPLING, self._prepare_sampling),
            (WrappersMP.PREDICT_NOISE, self._predict_noise),
            (WrappersMP.CALC_COND_BATCH, self._calc_cond_batch),
            (WrappersMP.DIFFUSION_MODEL, self._diffusion_model),
            (WrappersMP.APPLY_MODEL, self._apply_model),
        ):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, options, is_model_options=True)
        return options

    def end(self) -> RunStats | None:
        """Drop everything stored; what the run did, or None when even that can't be read (the device is in error)."""
        try:
            return self._run.close()
        except Exception:
            log.warning("Foresight could not read its last measurements", exc_info=True)
            return None

    def _prepare_sampling(self, executor, model_patcher, noise_shape, conds, *args, **kwargs):
        """Let ComfyUI plan for what will be stored: it sizes by the model's memory factor."""
        model = model_patcher.model
        need = self._planned_bytes(model, tuple(noise_shape), conds)
        usual, found = model.memory_required(list(noise_shape)), model.memory_usage_factor
        if not self._run.stats.inactive:
            held = f"about {format_bytes(need)} will be held" if need else "what will be held is known when it is"
            log.info("Foresight: at most %d of %d steps can be reused, %s", self._run.most_reuse, self._steps, held)
        if need and usual:
            model.memory_usage_factor = found * (usual + need) / usual
        try:
            return executor(model_patcher, noise_shape, conds, *args, **kwargs)
        finally:
            model.memory_usage_factor = found

    def _planned_bytes(self, model, noise_shape: tuple[int, ...], conds: dict[str, list]) -> int:
        """About what the run will hold on the model's device; 0 where that can't be said beforehand, or nothing."""
        family, stack = self._stack(model.diffusion_model)
        shape = family and family.hidden_shape(model.diffusion_model, noise_shape)
        hidden = () if shape is None else (torch.Size(shape), model.get_dtype_inference())
        only_positive = self._cfg is not None and math.isclose(self._cfg, 1.0)
        streams = sum(len(entries) for name, entries in conds.items() if name == "positive" or not only_positive)
        return self._run.planned_bytes(noise_shape, hidden, len(stack), streams)

    def _predict_noise(self, executor, x, timestep, *args, **kwargs):
        if self._run.evaluation <= 0:  # before the first evaluation, and again when its activations are known
            self._run.set_budget(*self._budget(x.device, after_first=self._run.evaluation == 0))
        self._run.begin_evaluation(timestep)
        if self.watcher is not None:
            self.watcher.update()
        self._pass = -1
        if self._run.kind == "plain":
            return executor(x, timestep, *args, **kwargs)
        # behind the guider there is one output, whatever the conds, windows and passes
        sigma = self._run.stats.evaluations[-1].level  # known already: reading it again would make the GPU wait
        (denoised,) = self._run.output(
            "denoised",
            (x.shape, x.dtype, x.device, _active_conds(executor.class_obj.conds, sigma)),
            lambda: (executor(x, timestep, *args, **kwargs),),
            x.device,
            lambda output: (x - output[0],),
        )
        return denoised

    def _budget(self, device: torch.device, after_first: bool) -> tuple[int, int]:
        """Bytes that may be stored on the model's device and in RAM: the user's figure, else from what is free."""
        ram = comfy.model_management.get_free_memory(_RAM) // 2
        if self._config.cache_budget_gb:
            return int(self._config.cache_budget_gb * 2**30), ram
        free, pooled = comfy.model_management.get_free_memory(device, torch_free_too=True)
        if device.type == "cpu" or not after_first:
            return free // 2, ram
        # torch's pool is as large as an evaluation needs; what is free beside it can go to the cache
        return free - pooled - comfy.model_management.extra_reserved_memory() + self._run.held_bytes, ram

    def _calc_cond_batch(self, executor, *args, **kwargs):
        self._pass += 1
        self._seen.clear()
        return executor(*args, **kwargs)

    @outside_graphs(recursive=False)
    def _apply_model(self, executor, *args, **kwargs):
        """In place of `_diffusion_model` for the models that do not call its wrappers."""
        model = executor.class_obj.diffusion_model
        return self._around(getattr(model, "_orig_mod", model), False, executor, args, kwargs)

    @outside_graphs(recursive=False)  # with a whole model compiled, this runs inside its graph
    def _diffusion_model(self, executor, *args, **kwargs):
        return self._around(executor.class_obj, True, executor, args, kwargs)

    def _stack(self, model: torch.nn.Module) -> tuple[Family | None, list[tuple[torch.nn.Module, Section]]]:
        """Family and blocks of a model, looked up once a run; (None, []) for one that is not supported."""
        if model not in self._stacks:
            try:
                family = family_of(model, COMFYUI)
                self._stacks[model] = family, family.stack(model)
            except UnsupportedModel as error:  # a guider's second model, say: its calls stay plain
                log.info("Foresight inactive on a second model: %s", error)
                self._stacks[model] = None, []
        return self._stacks[model]

    @outside_graphs(recursive=False)
    def _around(self, model: torch.nn.Module, wrapped: bool, executor, args: tuple, kwargs: dict):
        """One call of the model."""
        family, stack, keys = self._call_of(model, wrapped, args, kwargs)
        if family is None:
            return executor(*args, **kwargs)
        forward = functools.partial(executor, *args, **kwargs)
        return families.run_blocks(self._run, stack, keys, forward, family.batch_dim or 0)

    @outside_graphs()
    def _call_of(self, model: torch.nn.Module, wrapped: bool, args: tuple, kwargs: dict) -> tuple:
        """The model's family, its stack and the keys of the call's streams; None for a call that stays plain."""
        family, stack = self._stack(model)
        options = _transformer_options(args, kwargs)
        if family is None or options is None:
            return None, stack, []
        keeps_state = family.plain_with in options
        if wrapped == (keeps_state or not family.wrapped):  # with state of their own, not all forwards call wrappers
            return None, stack, []
        if keeps_state and not self._run.stats.inactive:
            self._run.deactivate("blocks write a KV cache in each evaluation")
        latent = args[0][0] if isinstance(args[0], list) else args[0]  # video and audio come as a list
        keys = self._keys(model, options, latent.device)
        if family.batch_dim is None:
            keys = [tuple(keys)]
        if family.prefetches and self._run.kind == "reuse":
            options["prefetch_dynamic_vbars"] = False  # weights of blocks that run are then fetched when needed
        return family, stack, keys

    def _keys(self, model: torch.nn.Module, options: dict, device: torch.device) -> list[tuple]:
        """One key per cond of the call.

        A uuid alone repeats across cond and uncond, windows, extra passes and models.
        """
        window = options.get("context_window")
        frames = tuple(window.index_list) if window is not None else None
        keys = []
        with self._run.lock:
            for cond in zip(options["cond_or_uncond"], options["uuids"], strict=True):
                key = (id(model), device, self._pass, frames, *cond)
                keys.append((*key, self._seen[key]))
                self._seen[key] += 1
        return keys


def _flow_noise(sigma: float) -> float:
    """Share of noise of a flow model, x = (1 - sigma) x_0 + sigma noise."""
    return sigma


def _variance_noise(sigma: float) -> float:
    """Share of noise of every other model, x = x_0 + sigma noise."""
    return sigma / (1 + sigma)


def _active_conds(conds: dict[str, list[dict]], sigma: float) -> tuple:
    """What of the conds changes from one sigma to another: which of them, and of their ControlNets, are in range.

    A hook (a LoRA for some conds) whose strength has keyframes counts as changing all the time.
    """
    found = []
    for name, entries in conds.items():
        for cond in entries or ():
            inside = cond.get("timestep_end", -math.inf) <= sigma <= cond.get("timestep_start", math.inf)
            control, controls = cond.get("control"), []
            while control is not None:
                start, end = getattr(control, "timestep_range", None) or (math.inf, -math.inf)
                controls.append(end <= sigma <= start)
                control = getattr(control, "previous_controlnet", None)
            hooks = getattr(cond.get("hooks"), "hooks", ())
            keyed = any(len(getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())) > 1 for hook in hooks)
            found.append((name, cond.get("uuid"), inside, *controls, sigma if keyed else None))
    return tuple(found)


def _transformer_options(args: tuple, kwargs: dict) -> dict | None:
    """The transformer options among a diffusion model's arguments; their position differs between models."""
    for value in (*reversed(args), kwargs.get("transformer_options")):
        if isinstance(value, dict) and "cond_or_uncond" in value and "uuids" in value:
            return value
    return None
