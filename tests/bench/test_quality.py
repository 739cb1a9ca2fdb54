"""The quality benchmark: fronts and table by hand, the counting of work, and a short run of every kind of contender."""

import argparse
import os

import pytest
import torch

from bench import fronts, plots, quality, table
from bench.meter import Meter, blocks_of, live_bytes
from tools.demo import evaluate, run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HAS_COMFYUI = bool(os.environ.get("COMFYUI_PATH"))


def row(speed: float, psnr: float, name: str = "a", work: float | None = None) -> dict:
    return {
        **{"model": "wan", "sampler": "euler", "steps": 50, "contender": name, "psnr": psnr},
        **{"time_ratio": 1 / speed, "work_share": 1 / (work or speed)},
        **{"ssim": psnr / 100, "temporal_psnr": psnr, "psnr_worst": psnr - 1, "settings": {"threshold": speed}},
    }


# ---- fronts and the table


def test_the_front_leaves_out_what_another_point_beats_and_what_is_slower_than_plain():
    # (1.5, 40) is slower and worse than (1.8, 41); (0.9, 60) is slower than plain
    assert fronts.front([(2.0, 35), (1.5, 40), (1.8, 41), (1.2, 50), (0.9, 60)]) == [(1.2, 50), (1.8, 41), (2.0, 35)]


def test_speedup_is_interpolated_between_the_two_nearest_points_of_the_front():
    points = [(1.2, 50.0), (2.0, 40.0)]
    # 45 dB is half of the way from 50 to 40, so the speed-up is half of the way from 1.2 to 2.0
    assert fronts.speedup_at(points, 45) == (pytest.approx(1.6), False)
    assert fronts.speedup_at(points, 40) == (2.0, False)


def test_nothing_is_extrapolated():
    points = [(1.2, 50.0), (2.0, 42.0)]
    assert fronts.speedup_at(points, 35) == (2.0, True)  # all of it is above: at least its fastest point
    assert fronts.speedup_at(points, 55) is None  # all of it is below
    assert fronts.speedup_at([(0.8, 60.0)], 40) is None  # slower than plain


def test_a_point_at_which_nothing_was_reused_is_on_no_front():
    rows = [row(1.01, fronts.SAME), row(1.5, 40)]
    assert fronts.fronts(rows, "time_ratio") == {"a": [(pytest.approx(1.5), 40)]}


def test_the_table_names_the_leader_and_gives_the_speedup_by_work_in_brackets():
    rows = [row(1.2, 50, work=1.4), row(2.0, 40, work=2.4), row(1.5, 46, "b"), row(1.7, 44, "b")]
    rows.append({**{k: rows[0][k] for k in ("model", "sampler", "steps")}, "contender": "c", "cannot_run": "no"})
    text = table.markdown({"rows": rows})
    # at 45 dB a is at (1.2 + 2.0) / 2 = 1.6 by time and (1.4 + 2.4) / 2 = 1.9 by work, b at (1.5 + 1.7) / 2 = 1.6
    # at 40 dB a is at 2.0, b at least at 1.7; at 35 dB a is at least at 2.0
    assert "| a | **1.60x** (1.90) | **2.00x** (2.40) | **>=2.00x** (>=2.40) |" in text
    assert "| b | 1.60x (1.60) | >=1.70x (>=1.70) | >=1.70x (>=1.70) |" in text
    assert "euler 50, 40 dB: a" in text
    assert "Cannot run on it: c (no)." in text


def test_the_table_goes_between_the_comments_of_readme_and_nowhere_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{table.BEGIN}\nof last time\n{table.END}\nafter\n")
    table.into_readme({"rows": [row(1.2, 50)]}, path)
    text = path.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n") and text.endswith(f"{table.END}\nafter\n")
    assert "of last time" not in text and "1.20x" in text
    path.write_text("no place")
    with pytest.raises(ValueError, match="no place for the table"):
        table.into_readme({"rows": []}, path)


def test_what_the_threshold_does_and_how_far_ahead_it_is():
    rows = [row(2.0, 50, table.OURS), row(4.0, 40, table.OURS), row(2.0, 40, "b"), row(1.0, 60, "b")]
    text = table.knob({"rows": rows})
    assert "| Wan, bundled, euler 50 | 2.00x, 50.0 (49.0) dB | 4.00x, 40.0 (39.0) dB |" in text
    # at 45 dB ours is at 3.0 and b at 1.75; at 40 dB 4.0 and 2.0; at 35 dB at least the same
    assert "| 1.71 (1.71) | 2.00 (2.00) | 2.00 (2.00) |" in table.markdown({"rows": rows})


def test_where_another_measure_disagrees_is_said():
    rows = [row(1.0, 60), row(3.0, 40), row(1.0, 50, "b"), row(3.0, 30, "b")]
    assert table.disagreements({"rows": rows}) == []
    for entry in rows[2:]:
        entry["ssim"] = 0.99  # b keeps the structure better; but a flat front has one point, and that is no line
    rows[2]["ssim"] = 0.995
    assert table.disagreements({"rows": rows}, (2.0,)) == ["Wan, bundled, euler 50, 2x: PSNR a, ssim: b"]


def test_labels_are_pushed_apart_and_stay_above_the_lowest():
    assert plots.spread([50.0, 49.0, 30.0], gap=2.0, lowest=20.0) == [50.0, 48.0, 30.0]
    assert plots.spread([30.0, 20.0, 20.0], gap=2.0, lowest=20.0) == [30.0, 22.0, 20.0]


def test_rows_are_the_median_of_the_time_ratios_and_the_means_of_the_rest():
    def job(ratio: float, psnr: float, checker: bool) -> dict:
        point = {"contender": "a", "host": "comfyui", "settings": {"x": 1}, "recommended": True, "time_ratio": ratio}
        point |= {
            "cpu_ratio": ratio,
            "work_share": 0.5,
            "psnr": psnr,
            "ssim": 1.0,
            "temporal_psnr": psnr,
            "checker": checker,
        }
        return {"model": "wan", "sampler": "euler", "steps": 50, "points": [point],
                "plain": {"comfyui": {"checker": True}}}  # fmt: skip

    (found,) = quality.combine([job(0.5, 40, True), job(0.6, 50, False), job(1.9, 30, False)])
    assert (found["time_ratio"], found["psnr"], found["psnr_worst"]) == (0.6, 40, 30)
    assert (found["checker"], found["checker_plain"]) == (pytest.approx(1 / 3), 1.0)


# ---- prompts


def test_the_two_halves_and_all_other_prompt_lists_are_disjoint():
    from bench import jobs, settings

    halves = {name: set(pairs) for name, pairs in quality.PROMPTS.items()}
    assert all(len(pairs) == 6 for pairs in halves.values())
    others = {*evaluate.held_out_pairs(), *run.PROMPTS, *settings.PROMPTS, *jobs.CALIBRATION}
    assert not halves["report"] & halves["tune"]
    assert not (halves["report"] | halves["tune"]) & others
    texts = [text for pairs in halves.values() for text, _ in pairs] + [text for text, _ in jobs.CALIBRATION]
    assert len(set(texts)) == len(texts)


# ---- work and bytes


class Toy(torch.nn.Module):
    """Two blocks, 4 -> 8 -> 4 each, and a layer outside of them."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)) for _ in range(2)
        )
        self.head = torch.nn.Linear(4, 100)

    def forward(self, x: torch.Tensor, leave_out: int = 0) -> torch.Tensor:
        for block in self.blocks[leave_out:]:
            x = block(x)
        return self.head(x)


def test_work_is_rows_times_inputs_times_outputs_of_the_executed_linears_of_the_blocks():
    net, meter = Toy(), Meter()
    with meter.counting(blocks_of(net)):
        net(torch.zeros(2, 3, 4))  # 6 rows: 2 blocks x (6 x 4 x 8 + 6 x 8 x 4) = 2 x 384
    assert meter.multiply_adds == 768
    with meter.counting(blocks_of(net)):
        net(torch.zeros(2, 3, 4), leave_out=1)
    assert meter.multiply_adds == 768 + 384
    net(torch.zeros(2, 3, 4))  # not counted any more
    assert meter.multiply_adds == 1152


def test_live_bytes_counts_each_storage_once():
    before = live_bytes()
    x = torch.zeros(1 << 20)  # 4 MiB in fp32
    views = [x[:5], x.reshape(1024, 1024)]
    assert live_bytes() - before == 4 << 20
    del x, views


# ---- the real thing, short


@pytest.mark.skipif(not HAS_COMFYUI, reason="COMFYUI_PATH is not set")
def test_a_short_run_measures_contenders_of_both_hosts_lists_what_refuses_and_leaves_the_models_as_they_were(
    tmp_path, monkeypatch
):
    from bench import contenders, jobs

    def refuse(denoiser, settings, calibration=None):
        raise ValueError("not for this model")

    broken = contenders.Contender("broken", "diffusers", "x", ({"x": 1},), refuse)
    monkeypatch.setitem(jobs.BY_NAME, "broken", broken)
    names = [("Foresight paper", 3), ("EasyCache", 3), ("static reuse", 0), ("TaylorSeer lite", 0), ("DBCache", 3)]
    job = jobs.Job("wan", "euler", 6, "red ball moving up", 5, (*names, ("broken", 0)), weigh=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = jobs.result(job, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found["pristine"] == {"comfyui": True, "diffusers": True}
    assert found["hosts_agree_db"] > jobs.AGREE
    points = {point["contender"]: point for point in found["points"]}
    assert points.pop("broken")["cannot_run"] == "ValueError: not for this model"
    assert points["static reuse"]["work_share"] == 0.5  # 3 of 6 evaluations
    # of 6 steps 3 are warmup and the first after it is full; its hidden states are kept for the other two
    assert 4 / 6 <= points["Foresight paper"]["work_share"] < 1
    assert points["TaylorSeer lite"]["work_share"] == pytest.approx(4 / 6)  # 3 first, then every second: 0 1 2 - 4 -
    for point in points.values():
        assert point["time_ratio"] > 0 and point["held_bytes"] >= 0
        assert (point["psnr"] == jobs.SAME) == (point["work_share"] == 1.0), point
    assert jobs.result(job, tmp_path) == found  # from the file


@pytest.mark.skipif(not HAS_COMFYUI, reason="COMFYUI_PATH is not set")
def test_the_sampling_check_decides_the_same_with_the_same_rows():
    from bench import jobs, sampling_check

    jobs.both_hosts("wan")
    # changes of evaluations 1 to 5 for two blocks; lambda = 1 + 0.1 x 1 with W = 3
    changes = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.5, 2.0], [1.1, 0.0], [1.2, 0.1]])
    decided = sampling_check.decisions(changes, 3, 1.0)
    assert decided.tolist() == [[True, False], [True, True], [False, True]]


def test_a_plan_has_one_job_per_model_setting_and_prompt_and_quick_is_shorter():
    def plan(**given):
        args = {"contenders": None, "quick": False, "steps": None, "models": ["wan"], "half": "report", "prompts": 2}
        return quality.plan(argparse.Namespace(**{**args, **given}))

    assert len(plan()) == 3 * 2
    assert len(plan(quick=True)) == 2 * 2
    first, second, heun = (len(job.points) for job in plan()[:3])
    assert first > second == heun == len(plan(quick=True)[0].points)
    assert {name for name, _ in plan(contenders=["easy"])[0].points} == {"EasyCache"}
