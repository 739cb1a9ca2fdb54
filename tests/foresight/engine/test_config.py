import dataclasses
import math

import pytest

from foresight.engine import ForesightConfig


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1: must be between 0.0 and 2.0"),
        ({"threshold": math.nan}, "threshold=nan: must be a finite number"),
        ({"threshold": "0.5"}, "threshold='0.5': must be a finite number"),
        ({"warmup_steps": 101}, "warmup_steps=101: must be between 0 and 100"),
        ({"warmup_steps": 2.5}, "warmup_steps=2.5: must be a whole number"),
        ({"reuse_interval": 0}, "reuse_interval=0: must be between 1 and 8"),
        ({"reuse_interval": True}, "reuse_interval=True: must be a whole number"),
        ({"cache_device": "tpu"}, "cache_device='tpu': must be one of auto, gpu, cpu"),
        ({"method": "magic"}, "method='magic': must be one of forecast, paper"),
        ({"cache_kind": "both"}, "cache_kind='both': must be one of output, residual"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent=0.5: must be below end_percent=0.5"),
    ],
)
def test_a_bad_value_is_refused_with_value_and_limit(setting, message):
    with pytest.raises(ValueError) as error:
        ForesightConfig(**setting)
    assert str(error.value) == message


def test_a_config_never_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ForesightConfig().threshold = 1.0


@pytest.mark.parametrize(("steps", "warmup"), [(4, 3), (20, 3), (21, 4), (30, 5), (50, 8)])
def test_automatic_warmup_is_15_percent_and_at_least_3(steps, warmup):
    assert ForesightConfig(method="paper").warmup_of(steps) == warmup  # ceil(0.15 * 50 = 7.5) = 8
    assert ForesightConfig(method="paper", warmup_steps=6).warmup_of(steps) == 6
    assert ForesightConfig(method="forecast").warmup_of(steps) == 3
    assert ForesightConfig(method="forecast", warmup_steps=6).warmup_of(steps) == 6


def test_what_turns_it_off():
    assert ForesightConfig().off_reason is None
    assert ForesightConfig(threshold=0).off_reason == "threshold is 0"
    assert ForesightConfig(reuse_interval=1).off_reason == "reuse_interval is 1"


def test_limits_are_those_that_are_enforced():
    assert ForesightConfig.limits("reuse_interval") == {"default": 2, "min": 1, "max": 8, "step": 1}
    assert ForesightConfig.limits("cache_device") == {"default": "auto", "options": ["auto", "gpu", "cpu"]}
    with pytest.raises(ValueError, match="'gamma' is not a setting; the settings are warmup_steps, threshold"):
        ForesightConfig.limits("gamma")
