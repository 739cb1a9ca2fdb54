"""A third method in one file: every n-th evaluation is computed, and in between the last output is repeated."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from foresight.engine import Config
from foresight.engine.budget import Need
from foresight.engine.policy import Decision, Policy, policy_for
from foresight.engine.schedule import Place
from foresight.engine.tensors import Tensors


@dataclass(frozen=True)
class StaticConfig(Config):
    """Settings of static reuse; `reuse_interval` 0 means 3."""

    name: ClassVar[str] = "static"
    unused: ClassVar[str] = "nothing was repeated"

    def automatic_warmup(self, steps: int | None) -> int:
        return 1


@policy_for(StaticConfig)
class StaticReuse(Policy):
    """Computes every n-th evaluation after warmup."""

    def __init__(self, *args):
        super().__init__(*args)
        self._interval, self._computes = self.config.reuse_interval or 3, True
        self._outputs: dict[Hashable, Tensors] = {}

    def most_reuse(self, steps: int, warmup: int) -> int:
        return sum(since % self._interval != 0 for since in range(steps - warmup))

    def decide(self, place: Place) -> Decision:
        self._computes = not place.may_reuse or place.since_warmup % self._interval == 0
        return Decision(self._computes)

    def output(self, key: Hashable, signature: Hashable, compute: Callable, device: torch.device, unit) -> Tensors:
        if self._computes or key not in self._outputs:
            self._outputs[key] = tuple(x.clone() for x in compute())
        return tuple(x.clone() for x in self._outputs[key])

    def need(self) -> Need:
        return Need("the repeated outputs", self.held_bytes, 0, self.held_bytes)

    @property
    def held_bytes(self) -> int:
        return sum(x.nbytes for output in self._outputs.values() for x in output)

    def drop(self) -> None:
        self._outputs.clear()


# ---- it runs in both hosts, with record, map and budget

PATTERN = "warmup full reuse reuse full reuse reuse full reuse".split()


def check(stats, outputs: list[torch.Tensor]) -> None:
    """Nine evaluations at the default interval."""
    assert [e.kind for e in stats.evaluations] == PATTERN
    for i, kind in enumerate(PATTERN):
        repeated = kind == "reuse"
        assert torch.allclose(outputs[i], outputs[i - 1], atol=1e-5) == repeated
        row = stats.evaluations[i]
        assert (row.computed, row.reused) == (([0], [1]) if repeated else ([1], [0]))
    assert (stats.reused, stats.total) == (5, 9)
    assert stats.to_dict()["config"]["method"] == "static" and "left out 5 of 9 outputs" in stats.summary()
    assert stats.peak_bytes == outputs[0].nbytes


@pytest.fixture(scope="module")
def wan():
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    from support.comfy_models import MODELS

    return MODELS["wan"]()


def sampled(wan, runs, config):
    from foresight.hosts.comfyui import apply_foresight
    from support.comfy_models import sample

    patched, outputs = apply_foresight(wan.patcher, config), []
    sample(wan, patched, steps=9, callback=lambda step, x0, *_: outputs.append(x0.clone()))
    return runs[-1], outputs


def test_in_comfyui(wan, runs):
    stats, outputs = sampled(wan, runs, StaticConfig())
    check(stats, outputs)


def test_its_map_and_report_are_those_of_the_others(wan, runs):
    from foresight.report import figures, strip

    stats, _ = sampled(wan, runs, StaticConfig())
    record = stats.to_dict()
    assert [column.left_out for column in strip.columns(record)] == [kind == "reuse" for kind in PATTERN]
    assert "static, threshold 0.5, warmup 1" in figures.table({"run": record})


def test_its_budget_and_its_limits_are_those_of_the_others(wan, runs, monkeypatch):
    from foresight.hosts.comfyui import memory

    stats, _ = sampled(wan, runs, StaticConfig(threshold=0.5, warmup_steps=9))
    assert stats.inactive.startswith("at most 0 of 9 steps can be reused: all of them are warmup")
    monkeypatch.setattr(memory, "budget", lambda *_: (10, 10))
    stats, _ = sampled(wan, runs, StaticConfig(cache_device="gpu"))
    assert stats.inactive.startswith("the repeated outputs need") and stats.reused == 0


def test_in_diffusers():
    pytest.importorskip("diffusers", reason="diffusers is not installed here")
    from foresight.hosts.diffusers import apply_foresight
    from support import diffusers_models

    model = diffusers_models.MODELS["wan"]().model
    handle = apply_foresight(model, StaticConfig(), steps=9)
    outputs = []
    with torch.no_grad():
        for i in range(9):
            x = diffusers_models.seeded(1, 4, 3, 8, 8, seed=i)
            kwargs = diffusers_models.arguments("wan", x, 900 - 90 * i, diffusers_models.seeded(1, 6, 16, seed=1))
            with model.cache_context("cond"):
                velocity = model(**kwargs)[0]
            outputs.append(x - (900 - 90 * i) / 1000 * velocity)  # what is repeated is the denoised latent
    handle.remove()
    check(handle.stats, outputs)
