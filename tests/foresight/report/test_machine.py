"""What the machine is called that figures were measured on."""

import types

import pytest
import torch

from foresight.report import machine


@pytest.mark.parametrize(
    ("kind", "expected"), [("cpu", "AMD EPYC"), ("cuda", "NVIDIA H200"), ("mps", "AMD EPYC, mps"), ("xla", None)]
)
def test_a_card_is_called_what_torch_calls_it(kind, expected, monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: "AMD EPYC")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert machine.card(types.SimpleNamespace(type=kind)) == (expected or "AMD EPYC, xla")
