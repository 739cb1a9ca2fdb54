import dataclasses
import math

import pytest

from foresight.engine import METHODS, Config, ForecastConfig, PaperConfig
from foresight.engine.policy import policy_of


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1: must be between 0.0 and 32.0"),
        ({"threshold": math.nan}, "threshold=nan: must be a finite number"),
        ({"threshold": "0.5"}, "threshold='0.5': must be a finite number"),
        ({"warmup_steps": 101}, "warmup_steps=101: must be between 0 and 100"),
        ({"warmup_steps": 2.5}, "warmup_steps=2.5: must be a whole number"),
        ({"reuse_interval": 9}, "reuse_interval=9: must be between 0 and 8"),
        ({"reuse_interval": True}, "reuse_interval=True: must be a whole number"),
        ({"cache_device": "tpu"}, "cache_device='tpu': must be one of auto, gpu, cpu"),
        ({"cache_kind": "both"}, "cache_kind='both': must be one of output, residual"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent=0.5: must be below end_percent=0.5"),
    ],
)
def test_a_bad_value_is_refused_with_value_and_limit(setting, message):
    with pytest.raises(ValueError) as error:
        PaperConfig(**setting)
    assert str(error.value) == message


def test_a_config_never_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ForecastConfig().threshold = 1.0


@pytest.mark.parametrize(("steps", "warmup"), [(4, 3), (20, 3), (21, 4), (30, 5), (50, 8)])
def test_automatic_warmup_is_15_percent_and_at_least_3(steps, warmup):
    assert PaperConfig().warmup_of(steps) == warmup  # ceil(0.15 * 50 = 7.5) = 8
    assert PaperConfig(warmup_steps=6).warmup_of(steps) == 6
    assert ForecastConfig().warmup_of(steps) == 1  # the plan decides about the others
    assert ForecastConfig(warmup_steps=6).warmup_of(steps) == 6


def test_what_turns_it_off():
    assert ForecastConfig().off_reason is None
    assert ForecastConfig(threshold=0).off_reason == "threshold is 0"
    assert ForecastConfig(reuse_interval=1).off_reason == "reuse_interval is 1"


def test_limits_are_those_that_are_enforced():
    assert ForecastConfig.limits("reuse_interval") == {"default": 0, "min": 0, "max": 8, "step": 1}
    assert ForecastConfig.limits("cache_device") == {"default": "auto", "options": ["auto", "gpu", "cpu"]}
    with pytest.raises(ValueError, match="'gamma' is not a setting; the settings are warmup_steps, threshold"):
        ForecastConfig.limits("gamma")


def test_a_method_has_the_settings_of_all_methods_and_may_have_more():
    assert list(METHODS) == ["forecast", "paper"] and METHODS["paper"] is PaperConfig
    common = {f.name for f in dataclasses.fields(Config)}
    assert {f.name for f in dataclasses.fields(ForecastConfig)} == common
    assert {f.name for f in dataclasses.fields(PaperConfig)} == common | {"cache_kind", "sample_rows"}
    assert ForecastConfig().to_dict()["method"] == "forecast" and "sample_rows" not in ForecastConfig().to_dict()
    assert PaperConfig().interval == 2 and PaperConfig(reuse_interval=3).interval == 3


def test_settings_that_belong_to_no_method_are_refused():
    with pytest.raises(TypeError, match="Config is not the settings of a method; known are .*ForecastConfig.*Paper"):
        policy_of(Config())
