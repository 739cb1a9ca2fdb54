"""Where more of what is stored may wait beside the rest."""

import pytest
import torch

from foresight.engine.budget import Budget, Need, Offload

RAM = torch.device("cpu")


@pytest.mark.parametrize(
    ("offload", "size", "fits", "where"),
    [
        (Offload(), 30, True, None),  # 50 of need and 30 in 80
        (Offload(), 31, False, None),
        (Offload(fallback=RAM), 30, True, None),
        (Offload(fallback=RAM), 100, True, RAM),  # the need stays on the device
        (Offload(fallback=RAM), 101, False, RAM),
        (Offload(RAM), 50, True, RAM),  # the need is in RAM, too: 50 and 50 in 100
        (Offload(RAM), 51, False, RAM),
    ],
)
def test_what_is_asked_for_beside_the_need(offload, size, fits, where):
    found = Budget(device=80, ram=100).room(size, Need("the outputs", on_device=50, beside=0, in_ram=50), offload)
    assert found == (fits, where)


@pytest.mark.parametrize(
    ("setting", "device", "fallback"), [("gpu", None, None), ("cpu", RAM, None), ("auto", None, RAM)]
)
def test_the_users_setting(setting, device, fallback):
    offload = Offload.of(setting)
    assert (offload.device, offload.fallback, offload.copy_stream) == (device, fallback, None)
