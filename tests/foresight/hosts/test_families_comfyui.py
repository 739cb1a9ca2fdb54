"""Every family in ComfyUI on a tiny random instance, called as its sampling code nests the calls."""

import importlib
import types

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.patcher_extension
import comfyui_version

from foresight.hosts import comfyui, families
from support import contract
from support.tiny_networks import NETWORKS
from support.toy import paper

WRAPPERS = comfy.patcher_extension.WrappersMP


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def network(request):
    try:
        return request.param()
    except ImportError as error:
        pytest.skip(f"this ComfyUI has no {request.param.__name__}: {error}")


class Run:
    """A run at CFG 1 with the wrappers of one `_Run`, or with none."""

    def __init__(self, network, config=None):
        self.network, self.run = network, None
        self.options = {"transformer_options": {}}
        self.sigmas = torch.linspace(1, 0, contract.STEPS + 1)
        if config is not None:
            model_sampling = types.SimpleNamespace(percent_to_sigma=lambda percent: 1 - percent)
            patcher = types.SimpleNamespace(get_model_object=lambda name: model_sampling)
            self.run = comfyui._Run(config, patcher, self.sigmas)
            self.options = self.run.install(self.options)

    def _wrapped(self, kind, function, owner, *args):
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, self.options, is_model_options=True)
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(function, owner, wrappers).execute(*args)

    def __call__(self, step, **extra):
        """One evaluation, as CFGGuider, BaseModel and the network nest their calls."""

        def predict_noise(x, timestep):
            return self._wrapped(WRAPPERS.CALC_COND_BATCH, lambda: self.call_model(step, **extra), None)

        x = contract.latent_at(self.network.latent, step)
        with torch.inference_mode():
            return self._wrapped(WRAPPERS.PREDICT_NOISE, predict_noise, None, x, self.sigmas[step : step + 1])

    def call_model(self, step, **extra):
        """The one call of the model in that evaluation."""
        x, sigma = contract.latent_at(self.network.latent, step), self.sigmas[step : step + 1]
        base_model = types.SimpleNamespace(diffusion_model=self.network.model)
        options = {**self.options["transformer_options"], "cond_or_uncond": [0], "uuids": ["one"]}
        options = {**options, "sigmas": sigma, "sample_sigmas": self.sigmas, **extra}

        def apply_model(x, t, c_concat, c_crossattn, control, transformer_options):
            return self.network.call(x, dict(transformer_options))

        return self._wrapped(WRAPPERS.APPLY_MODEL, apply_model, base_model, x, sigma, None, None, None, options)


def stack_of(network):
    return families.family_of(network.model, families.COMFYUI).stack(network.model)


def test_measuring_changes_nothing(network):
    active = Run(network, paper(threshold=1e-12, warmup_steps=3))
    contract.check_measuring(stack_of(network), Run(network), active, active.run.end)


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("interval", [2, 3])
def test_reuse_is_what_a_network_with_stubs_gives(network, kind, interval):
    active = Run(
        network,
        paper(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind, reuse_interval=interval),
    )
    contract.check_reuse(network.model, stack_of(network), Run(network), active, active.run.end, kind)


def test_every_family_has_a_network():
    covered = set()
    for make in NETWORKS:
        try:
            covered.add(families.family_of(make().model, families.COMFYUI).name)
        except ImportError:
            pass
    assert covered == {family.name for family in families.COMFYUI if exists(family.model)}


def exists(name: str) -> bool:
    """Whether this ComfyUI has the class; the newest has them all."""
    module, _, cls = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), cls) or version_at_least(0, 33)
    except ModuleNotFoundError:
        return version_at_least(0, 33)


def version_at_least(*wanted: int) -> bool:
    return tuple(int(part) for part in comfyui_version.__version__.split(".")[:2]) >= wanted
