"""Every family in diffusers on a tiny random instance."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

from foresight.hosts import families
from foresight.hosts.diffusers import apply_foresight
from support import contract
from support.diffusers_transformers import TRANSFORMERS
from support.toy import paper


@pytest.fixture(scope="module", params=TRANSFORMERS, ids=lambda make: make.__name__)
def transformer(request):
    return request.param()


def stack_of(transformer):
    return families.family_of(transformer.model, families.DIFFUSERS).stack(transformer.model)


class Run:
    """Calls without a context, as a hand-written loop makes them; with a config, Foresight is on the transformer."""

    def __init__(self, transformer, config=None):
        self.transformer = transformer
        self.handle = apply_foresight(transformer.model, config, steps=contract.STEPS) if config else None

    def __call__(self, step):
        timestep = torch.tensor([1000.0 * (1 - step / contract.STEPS)])
        with torch.no_grad():
            return self.transformer.call(contract.latent_at(self.transformer.latent, step), timestep)

    def end(self):
        self.handle.remove()
        return self.handle.stats


class Plain(Run):
    """The same model while another run has its hook on it: straight to the class's forward."""

    def __call__(self, step):
        model = self.transformer.model
        hooked = model.__dict__.pop("forward", None)
        try:
            return super().__call__(step)
        finally:
            if hooked is not None:
                model.forward = hooked


def test_measuring_changes_nothing(transformer):
    active = Run(transformer, paper(threshold=1e-12, warmup_steps=3))
    contract.check_measuring(stack_of(transformer), Plain(transformer), active, active.end)


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("interval", [2, 3])
def test_reuse_is_what_a_network_with_stubs_gives(transformer, kind, interval):
    config = paper(threshold=2.0, warmup_steps=3, sample_rows=0, cache_kind=kind, reuse_interval=interval)
    active = Run(transformer, config)
    contract.check_reuse(transformer.model, stack_of(transformer), Plain(transformer), active, active.end, kind)


def test_every_family_has_a_transformer():
    covered = {families.family_of(make().model, families.DIFFUSERS).name for make in TRANSFORMERS}
    assert covered == {family.name for family in families.DIFFUSERS}
