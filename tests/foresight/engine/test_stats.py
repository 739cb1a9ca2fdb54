import json

import pytest
import torch

from foresight import PaperConfig
from foresight.engine import ForecastConfig, Run, RunStats
from foresight.engine.stats import Evaluation


def stats():
    full = [
        Evaluation("full", 1.0, seconds, [2, 2], [0, 0], [0.4, None]) for seconds in (9.0, 2.0, 2.0)
    ]  # 9.0: also compiles
    reuse = [Evaluation("reuse", 0.5, 1.0, [0, 2], [2, 0], [None, 1.2])]
    return RunStats(PaperConfig(), 4, 3, full + reuse, peak_bytes=3 * 2**20)


def test_figures():
    s = stats()
    assert (s.reused, s.total, s.reuse_ratio) == (2, 16, 0.125)
    assert s.block_speedup == pytest.approx(16 / 14)
    assert (s.seconds_full, s.seconds_reuse) == (2.0, 1.0)
    assert s.estimated_speedup == pytest.approx(8 / 7)  # 4 evaluations of 2 s, against 3 of 2 s and one of 1 s


def test_the_line():
    assert stats().summary() == (
        "left out 2 of 16 block calls (12%), measured 2 s per full and 1 s per reuse evaluation, "
        "estimated speed-up 1.14x, held 3.0 MiB"
    )
    nothing = RunStats(PaperConfig(), 4, 3, [Evaluation("full", 1.0, 1.0, [2], [0], [1.5])])
    assert nothing.summary() == "inactive: no block qualified; 1 evaluations computed in full"
    nothing = RunStats(ForecastConfig(), 4, 3, nothing.evaluations)
    assert (
        nothing.summary()
        == "inactive: every step was worth computing at this threshold; 1 evaluations computed in full"
    )


def test_to_dict_is_json_and_complete():
    data = json.loads(json.dumps(stats().to_dict()))
    assert data["format"] == 4
    assert data["evaluations"][3] == {
        "kind": "reuse",
        "level": 0.5,
        "seconds": 1.0,
        "computed": [0, 2],
        "reused": [2, 0],
        "ratio": [None, 1.2],
        "share": None,
        "expected": None,
        "missed": None,
        "missed_parts": [],
    }
    assert data["config"]["threshold"] == 0.5 and data["estimated_speedup"] == pytest.approx(8 / 7)


def test_an_empty_run():
    empty = RunStats(PaperConfig())
    assert (empty.reuse_ratio, empty.seconds_full, empty.estimated_speedup) == (0.0, None, None)
    assert empty.summary().startswith("inactive")
    json.dumps(empty.to_dict())


def test_the_largest_ratio_over_the_streams_is_shown():
    evaluation = Evaluation("full")
    evaluation.count(1, False, 1, 0.3)
    evaluation.count(1, False, 1, 0.7)
    evaluation.count(0, True, 2, None)
    assert (evaluation.computed, evaluation.reused, evaluation.ratio) == ([0, 2], [2, 0], [None, 0.7])


def test_a_range_that_ends_at_once_is_not_called_a_video_without_two_evaluations_alike():
    run = Run(ForecastConfig(end_percent=0.005), noise=lambda level: level)
    for k in range(30):
        x = torch.full((1, 4), 1 - k / 30)
        run.begin_evaluation(1 - k / 30, (x,))
        run.output("cond", None, lambda x=x: (x * 0.5,), x.device)
    assert "came twice" not in run.close().summary()
