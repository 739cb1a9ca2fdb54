"""Foresight in ComfyUI: wrappers on a ModelPatcher, stream keys, and the life of a run."""

import logging
import math
from collections import Counter

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch

from ..foresight import Call, ForesightConfig, RunStats, Session
from . import live
from .families import COMFYUI, Family, Section, Swapped, UnsupportedModel, family_of

WrappersMP = comfy.patcher_extension.WrappersMP
KEY = "foresight"

log = logging.getLogger(__name__)


def apply_foresight(
    model_patcher: "comfy.model_patcher.ModelPatcher", config: ForesightConfig, node_id: str | None = None
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
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Template(config, node_id))
    return patched


class _Template:
    """What the node leaves on the patcher: the OUTER_SAMPLE wrapper that begins and ends a run."""

    def __init__(self, config: ForesightConfig, node_id: str | None):
        self._config, self._node_id = config, node_id

    def __call__(self, executor, *args, **kwargs):
        guider, sigmas = executor.class_obj, args[3]
        run = _Run(self._config, guider.model_patcher, sigmas)
        found = guider.model_options
        guider.model_options = run.install(found)
        try:
            samples = executor(*args, **kwargs)
        finally:
            guider.model_options = found
            stats = run.end()
            if stats is not None:
                _tell(stats, self._node_id)
        return samples


def _tell(stats: RunStats, node_id: str | None) -> None:
    log.info("Foresight %s", stats.summary())
    live.publish(stats, node_id)


class _Run:
    """One sampler run: a Session and the wrappers that feed it. Exists inside OUTER_SAMPLE only."""

    def __init__(self, config: ForesightConfig, model_patcher, sigmas: torch.Tensor):
        self._config = config
        model_sampling = model_patcher.get_model_object("model_sampling")
        # the two ends of the range mean "no bound", whatever a model takes for its first and last sigma
        highest = float(model_sampling.percent_to_sigma(config.start_percent)) if config.start_percent > 0 else math.inf
        lowest = float(model_sampling.percent_to_sigma(config.end_percent)) if config.end_percent < 1 else -math.inf
        home = torch.device("cpu") if config.cache_device == "cpu" else None
        self._session = Session(config, schedule=sigmas.tolist(), region=(highest, lowest), home=home)
        self._stacks: dict[torch.nn.Module, tuple[Family | None, list[tuple[torch.nn.Module, Section]]]] = {}
        self._pass = -1  # CALC_COND_BATCH ordinal within the evaluation
        self._seen: Counter = Counter()  # (cond index, uuid) within the pass

    def install(self, model_options: dict) -> dict:
        """A clone of a guider's model options with this run's wrappers in it."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        for kind, wrapper in (
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
            return self._session.close()
        except Exception:
            log.warning("Foresight could not read its last measurements", exc_info=True)
            return None

    def _predict_noise(self, executor, *args, **kwargs):
        x, timestep = args[:2]
        if self._session.evaluation < 0:
            self._session.budget_bytes = self._budget(x.device)
        self._session.begin_evaluation(timestep)
        self._pass = -1
        return executor(*args, **kwargs)

    def _budget(self, device: torch.device) -> int | None:
        """Bytes that may be stored: the user's, else half of what is free now that the model is loaded."""
        if self._config.cache_budget_gb:
            return int(self._config.cache_budget_gb * 2**30)
        return int(comfy.model_management.get_free_memory(device) / 2)

    def _calc_cond_batch(self, executor, *args, **kwargs):
        self._pass += 1
        self._seen.clear()
        return executor(*args, **kwargs)

    @torch.compiler.disable(recursive=False)
    def _apply_model(self, executor, *args, **kwargs):
        """In place of `_diffusion_model` for the models that do not call its wrappers."""
        model = executor.class_obj.diffusion_model
        return self._around(getattr(model, "_orig_mod", model), False, executor, args, kwargs)

    @torch.compiler.disable(recursive=False)  # with a whole model compiled, this runs inside its graph
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

    @torch.compiler.disable(recursive=False)
    def _around(self, model: torch.nn.Module, wrapped: bool, executor, args: tuple, kwargs: dict):
        """One call of the model, with its blocks' forwards swapped."""
        stack, call = self._begin_call(model, wrapped, args, kwargs)
        if call is None:
            return executor(*args, **kwargs)
        with Swapped(stack, call):
            result = executor(*args, **kwargs)
        if call.finish():
            return result
        with Swapped(stack, call.retry()):
            return executor(*args, **kwargs)

    @torch.compiler.disable
    def _begin_call(self, model: torch.nn.Module, wrapped: bool, args: tuple, kwargs: dict) -> tuple[list, Call | None]:
        """The model's stack and the call; None for a call that stays plain."""
        family, stack = self._stack(model)
        options = _transformer_options(args, kwargs)
        if family is None or family.wrapped != wrapped or options is None or family.plain_with in options:
            return stack, None
        latent = args[0][0] if isinstance(args[0], list) else args[0]  # video and audio come as a list
        keys = self._keys(model, options, latent.device)
        if family.batch_dim is None:
            keys = [tuple(keys)]
        if family.prefetches and self._session.kind == "reuse":
            options["prefetch_dynamic_vbars"] = False  # weights of blocks that run are then fetched when needed
        return stack, self._session.begin_call(keys, len(stack), family.batch_dim or 0)

    def _keys(self, model: torch.nn.Module, options: dict, device: torch.device) -> list[tuple]:
        """One key per cond of the call.

        A uuid alone repeats across cond and uncond, windows, extra passes and models.
        """
        window = options.get("context_window")
        frames = tuple(window.index_list) if window is not None else None
        keys = []
        for cond in zip(options["cond_or_uncond"], options["uuids"], strict=True):
            keys.append((id(model), self._pass, frames, *cond, self._seen[cond], device))
            self._seen[cond] += 1
        return keys


def _transformer_options(args: tuple, kwargs: dict) -> dict | None:
    """The transformer options among a diffusion model's arguments; their position differs between models."""
    for value in (*reversed(args), kwargs.get("transformer_options")):
        if isinstance(value, dict) and "cond_or_uncond" in value and "uuids" in value:
            return value
    return None
