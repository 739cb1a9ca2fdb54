"""Fixtures of both hosts' tests. Either host may be absent, so that nothing here needs it before a test asks for it."""

import importlib.util

import pytest

if importlib.util.find_spec("diffusers"):
    from support.diffusers_models import MODELS as TRANSFORMERS
else:
    TRANSFORMERS = {}  # its tests are skipped


@pytest.fixture(scope="module")
def models():
    """ComfyUI's tiny models by name."""
    from support.comfy_models import MODELS

    return {name: make() for name, make in MODELS.items()}


@pytest.fixture
def nothing_compiled():
    """The compiler knows nothing of other tests, and they nothing of this one."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def runs(monkeypatch):
    """The RunStats of every run in ComfyUI, in order."""
    from foresight.hosts.comfyui import live

    seen = []
    monkeypatch.setattr(live.Watcher, "finish", lambda self: seen.append(self.stats))
    return seen


@pytest.fixture(scope="module")
def transformers():
    """diffusers' tiny transformers by name."""
    return {name: make().model for name, make in TRANSFORMERS.items()}


@pytest.fixture(params=TRANSFORMERS)
def name(request):
    """Each of diffusers' tiny transformers in turn."""
    return request.param


@pytest.fixture
def applied(transformers, name):
    """`applied(config)` is `apply_foresight` on the transformer called `name`, taken off again after the test."""
    from foresight.hosts.diffusers import apply_foresight
    from support.diffusers_models import stack

    handles = []

    def apply(config, **options):
        handles.append(apply_foresight(transformers[name], config, **options))
        return handles[-1]

    yield apply
    for handle in handles:
        handle.remove()
    assert not [block for block in stack(transformers, name) if "forward" in block.__dict__]
