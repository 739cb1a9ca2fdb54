"""Noise levels are asked for without reading the device: once a run, however a model keeps them."""

import inspect

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.model_sampling
import comfy.samplers

from foresight import ForecastConfig, PaperConfig
from foresight.hosts.comfyui import apply_foresight
from foresight.hosts.comfyui.levels import Levels
from support.comfy_models import sample

KINDS = {
    name: kind
    for name, kind in inspect.getmembers(comfy.model_sampling, inspect.isclass)
    if hasattr(kind, "percent_to_sigma")
}
READS = "item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "nonzero"


class OnDevice(torch.Tensor):
    """A tensor that counts as one on a GPU until it is copied to RAM; what is computed from it does so too."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in READS:
            pytest.fail(f"{function.__name__} reads the device")
        if function.__name__ == "cpu":
            return args[0].as_subclass(torch.Tensor)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_levels_is_asked_in_ram(kind):
    plain, model_sampling = KINDS[kind](), KINDS[kind]()
    for name, x in model_sampling.named_buffers():
        setattr(model_sampling, name, x.as_subclass(OnDevice))
    levels = Levels(model_sampling)
    for percent in (0.0, 0.1, 0.5, 0.9, 1.0):
        sigma = levels.sigma(percent)
        assert sigma == float(plain.percent_to_sigma(percent))
        if plain.sigma_min < sigma < plain.sigma_max:  # core's own discrete EDM gives other levels than it has
            assert levels.over(sigma) == pytest.approx(percent, abs=1e-5)
    assert all(isinstance(x, OnDevice) for x in model_sampling.buffers())  # its own stay where they were


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("config", [PaperConfig(threshold=2.0), ForecastConfig(threshold=2.0)], ids=lambda c: c.name)
def test_a_run_asks_a_model_of_discrete_levels_for_none(models, runs, sampler, config, monkeypatch):
    """CogVideoX, Latte and AnimateDiff keep a table beside the weights: to look a level up there is a device read."""
    model, asked = models["cogvideox"], []
    patched = apply_foresight(model.patcher, config)
    own = patched.get_model_object("model_sampling")
    original = type(own).percent_to_sigma
    assert isinstance(own, comfy.model_sampling.ModelSamplingDiscrete)

    def percent_to_sigma(self, percent):
        asked.append(self is own)
        return original(self, percent)

    monkeypatch.setattr(type(own), "percent_to_sigma", percent_to_sigma)
    sample(model, patched, steps=14, sampler=sampler)
    assert runs[-1].reused and asked and not any(asked)
    assert len(asked) <= 2 * 20 * 14  # at each level once, however often it is passed


class Falls(torch.nn.Module):
    """Sigma falls from 1 to 0; in each of these it takes something that a copy may lack."""

    def percent_to_sigma(self, percent):
        return 1.0 - percent


class NoModule:
    percent_to_sigma = Falls.percent_to_sigma


class WithParameter(Falls):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def percent_to_sigma(self, percent):
        return (1.0 - percent) * self.weight.item()


class WithModule(Falls):
    def __init__(self):
        super().__init__()
        self.inner = Falls()

    def percent_to_sigma(self, percent):
        return self.inner.percent_to_sigma(percent)


class WithSlots(Falls):
    __slots__ = ("highest",)

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "highest", 1.0)

    def percent_to_sigma(self, percent):
        return self.highest - percent


class NotToBeCopied(Falls):
    def __getstate__(self):
        raise TypeError("not to be copied")


class CopiedAsItself(Falls):
    def __init__(self):
        super().__init__()
        self.register_buffer("highest", torch.ones(1).as_subclass(OnDevice))

    def __copy__(self):
        return self


class NewWithArguments(Falls):
    def __new__(cls, needed):
        return super().__new__(cls)

    def __init__(self, needed):
        super().__init__()


class OnTheObject(Falls):
    def __init__(self):
        super().__init__()
        self.percent_to_sigma = lambda percent: 1.0 - percent


UNUSUAL = [NoModule, WithParameter, WithModule, WithSlots, NotToBeCopied, CopiedAsItself, NewWithArguments, OnTheObject]


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_another_pack_has_for_levels_is_asked_as_it_is_where_it_cannot_be_copied(kind):
    found = kind(1) if kind is NewWithArguments else kind()
    assert Levels(found).over(0.25) == pytest.approx(0.75, abs=1e-5)
    assert all(isinstance(x, OnDevice) for x in getattr(found, "buffers", tuple)())
