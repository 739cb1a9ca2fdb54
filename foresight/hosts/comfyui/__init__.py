"""Foresight in ComfyUI: what is left on a ModelPatcher, and the beginning and the end of a run."""

import logging

import comfy.model_patcher
import comfy.patcher_extension

from ...engine import Config
from ..blocks import UnsupportedModel, family_of
from . import live
from .conds import is_guided
from .families import FAMILIES
from .prompts import Newest, Present
from .run import KEY, SamplerRun
from .wrappers import Wrapper

WrappersMP = comfy.patcher_extension.WrappersMP

log = logging.getLogger(__name__)


def apply_foresight(
    model_patcher: "comfy.model_patcher.ModelPatcher",
    config: Config,
    node_id: str | None = None,
    shown_id: str | None = None,
) -> "comfy.model_patcher.ModelPatcher":
    """A clone of `model_patcher` whose sampler runs use Foresight; a Foresight applied before is replaced.

    Only the frozen `config` and the figures of the newest runs stay on the patcher: what a run stores is born and
    dropped inside the run.

    Args:
        node_id: Of the node that applies it; None in a script.
        shown_id: The node on the screen that a loop made this one of.

    Raises:
        UnsupportedModel: the method looks at blocks, and the diffusion model's class is not in the table of families.
    """
    _check(model_patcher.model, config)
    patched = model_patcher.clone()
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    if config.off_reason:
        log.info("Foresight inactive: %s", config.off_reason)
    else:
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Template(config, node_id, shown_id))
    return patched


def _check(model: object, config: Config) -> None:
    """Refuse a model that a method by block does not know; say that another method was not tested with it."""
    diffusion_model = getattr(model, "diffusion_model", model)
    diffusion_model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    try:
        family_of(diffusion_model, FAMILIES, advice="Use the method forecast, which takes every model.")
    except UnsupportedModel:
        if config.by_block:
            raise
        name = type(diffusion_model).__name__
        log.info("Foresight: %s is not among the models that were tested; validate shows how good it is there", name)


def runs_on(model_patcher: "comfy.model_patcher.ModelPatcher", present: Present | None = None) -> list[dict]:
    """What the newest sampler runs of a model with Foresight did, oldest first: each `live.Watcher.record()`.

    Empty for a model without Foresight. `present` leaves out what does not belong to its prompt.
    """
    templates = model_patcher.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(KEY, [])
    return [watcher.record() for template in templates for _, watcher in template.newest.of(present or Present())]


class _Template(Wrapper):
    """What the node leaves on the patcher: the OUTER_SAMPLE wrapper that begins and ends a run."""

    def __init__(self, config: Config, node_id: str | None, shown_id: str | None):
        self.config, self._shown_id = config, shown_id or node_id
        self.newest: Newest[live.Watcher] = Newest(node_id)  # figures only, no tensors

    def __call__(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        if len(sigmas) < 2:  # no step to take, as SplitSigmas may leave it
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
        guider = executor.class_obj
        run = SamplerRun(
            self.config,
            guider.model_patcher,
            sigmas,
            getattr(guider, "cfg", None),
            watch=lambda: watcher.update(),
            shapes=kwargs.get("latent_shapes"),
            sampler=sampler,
            denoise_mask=denoise_mask,
            guided=is_guided(guider),
        )
        watcher = live.Watcher(run.stats, self._shown_id, self.newest.add)
        found, broken_off = guider.model_options, True
        guider.model_options = run.install(found)
        try:
            samples = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
            broken_off = False
        finally:
            guider.model_options = found
            stats = run.end(broken_off)
            if stats is not None:
                if run.speaks:
                    log.info("Foresight %s", stats.summary())
                watcher.finish()
        return samples
