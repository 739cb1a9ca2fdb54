"""Foresight in ComfyUI: what is left on a ModelPatcher, and the beginning and the end of a run."""

import logging
from collections.abc import Container

import comfy.model_patcher
import comfy.patcher_extension

from ...engine import Config
from ..blocks import family_of
from . import live
from .families import FAMILIES
from .run import KEY, SamplerRun

WrappersMP = comfy.patcher_extension.WrappersMP

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
    family_of(getattr(diffusion_model, "_orig_mod", diffusion_model), FAMILIES)
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
        run = SamplerRun(
            self.config,
            guider.model_patcher,
            sigmas,
            getattr(guider, "cfg", None),
            watch=lambda: watcher.update(),
            shapes=kwargs.get("latent_shapes"),
            sampler=sampler,
        )
        watcher = live.Watcher(run.stats, self.node_id, self._workflow_id, owner=self)
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
