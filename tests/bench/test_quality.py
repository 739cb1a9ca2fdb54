"""The quality benchmark: its plan, the counting of work, going on where it was cut off, short runs in both hosts."""

import argparse
import os

import pytest
import torch

from bench import quality, workloads
from bench.meter import Meter, blocks_of, live_bytes
from bench.workloads import BY_NAME, LAST, PROMPTS, Workload
from tools.demo import evaluate, run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HAS_COMFYUI = bool(os.environ.get("COMFYUI_PATH"))


def args(**given) -> argparse.Namespace:
    base = {"contenders": None, "quick": False, "models": ["wan"], "half": "report", "prompts": 2, "last": LAST}
    return argparse.Namespace(**{**base, "workloads": list(BY_NAME), **given})


# ---- rows


def test_rows_are_the_median_of_the_time_ratios_and_the_means_of_the_rest_and_keep_each_prompt():
    def job(seed: int, ratio: float, psnr: float, checker: bool) -> dict:
        point = {"contender": "a", "host": "comfyui", "settings": {"x": 1}, "recommended": True, "time_ratio": ratio}
        point |= {"cpu_ratio": ratio, "work_share": 0.5, "psnr": psnr, "ssim": 1.0, "temporal_psnr": psnr}
        point["checker"] = checker
        return {"model": "wan", "workload": "euler 50", "seed": seed, "points": [point],
                "plain": {"comfyui": {"checker": True}}}  # fmt: skip

    (found,) = quality.combine([job(2, 0.6, 50, False), job(1, 0.5, 40, True), job(3, 1.9, 30, False)])
    assert (found["time_ratio"], found["psnr"], found["psnr_worst"]) == (0.6, 40, 30)
    assert (found["checker"], found["checker_plain"]) == (pytest.approx(1 / 3), 1.0)
    assert found["by_prompt"]["psnr"] == [40, 50, 30]  # in the order of the seeds


# ---- prompts


def test_the_two_halves_and_all_other_prompt_lists_are_disjoint():
    from bench import jobs, settings

    halves = {name: set(pairs) for name, pairs in PROMPTS.items()}
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


def test_two_stages_add_up():
    net, meter = Toy(), Meter()
    with meter.counting(blocks_of(net), blocks_of(other := Toy())):
        net(torch.zeros(2, 3, 4))
        other(torch.zeros(2, 3, 4))
    assert meter.multiply_adds == 2 * 768


# ---- the plan


def test_a_plan_has_a_job_of_ours_and_one_of_the_others_per_model_workload_and_prompt():
    jobs = quality.plan(args())
    assert len(jobs) == 2 * 5 * 2  # of the 8 workloads 5 run on this model, with two prompts
    assert [job.is_ours for job in jobs[:4]] == [True, False] * 2
    assert {job.seed for job in jobs[:10]} == {401}  # prompt by prompt: a run that is cut off has all columns
    assert [job.weigh for job in jobs] == [True] * 10 + [False] * 10
    assert len({job.file_name for job in jobs}) == len(jobs)


def test_the_slowest_peers_run_where_papers_do_and_everywhere_if_asked():
    def contenders(workload: str, **given) -> set[str]:
        return {name for job in quality.plan(args(workloads=[workload], **given)) for name, _ in job.points}

    assert set(LAST) <= contenders("euler 50") and not set(LAST) & contenders("euler 20")
    assert set(LAST) <= contenders("euler 20", last=())
    assert contenders("euler 20", contenders=["easy"]) == {"EasyCache"}


def test_quick_has_fewer_points():
    whole, quick = (
        [len(job.points) for job in quality.plan(args(workloads=["euler 20"], quick=quick))] for quick in (False, True)
    )
    assert all(a > b for a, b in zip(whole, quick, strict=True))


def test_what_is_left_out_is_said_and_not_run(monkeypatch):
    monkeypatch.setitem(workloads.NETWORKS, "experts", ("wan", "no_such_network"))
    given = args(models=["wan", "experts"], workloads=["euler 20", "euler 10 + 10"])
    assert quality.left_out(given) == [
        "experts is left out: bench/models.py does not know the network no_such_network.",
        "FasterCache and PAB run with euler 50 only.",
    ]
    assert {job.model for job in quality.plan(given)} == {"wan"}
    assert quality.left_out(args(last=(), workloads=["euler 20"])) == []


def test_a_network_without_weights_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.models.FOLDER", tmp_path)
    assert workloads.missing("wan_deep") == (
        "wan_deep is left out: wan_deep.safetensors is missing, `python -m bench.models wan_deep` makes it."
    )
    assert workloads.missing("wan") is None


def test_the_stages_of_a_workload_follow_one_another():
    pair = Workload("pair", "euler", (10, 10), 5.0)
    assert (pair.steps, pair.spans, pair.is_short) == (20, [(0, 10), (10, 20)], True)
    assert not BY_NAME["euler 20"].is_short
    assert [workloads.evaluations(name, 5) for name in ("euler", "uni_pc", "heun")] == [5, 5, 9]


# ---- going on


@pytest.fixture
def counted(monkeypatch):
    """`jobs.run` that measures nothing and counts how often it is asked to."""
    from bench import jobs

    ran = []

    def run(job, folder):
        ran.append(job.file_name)
        if job.seed == 13:
            raise KeyboardInterrupt
        return {"points": []}

    monkeypatch.setattr(jobs, "run", run)
    return ran


def test_a_job_that_is_done_is_not_run_again_and_one_that_was_cut_off_is(counted, tmp_path):
    from bench import jobs

    work = [jobs.Job("wan", BY_NAME["euler 20"], "p", seed, (("static reuse", 0),)) for seed in (1, 13, 2)]
    with pytest.raises(KeyboardInterrupt):
        [jobs.result(job, tmp_path) for job in work]
    work[1] = jobs.Job("wan", BY_NAME["euler 20"], "p", 14, (("static reuse", 0),))
    found = [jobs.result(job, tmp_path) for job in work]
    assert [name.split("-")[-2] for name in counted] == ["1", "13", "14", "2"]
    assert [jobs.result(job, tmp_path) for job in work] == found and len(counted) == 4
    assert not list(tmp_path.glob("*.part"))


def test_a_job_is_run_again_when_its_points_its_workload_or_its_code_have_changed(counted, tmp_path, monkeypatch):
    from bench import jobs

    def signature(contender: str, index: int = 0, workload: str = "euler 20") -> str:
        return jobs.Job("wan", BY_NAME[workload], "p", 1, ((contender, index),)).signature

    mine, other = signature("Foresight forecast"), signature("static reuse")
    assert len({mine, other, signature("static reuse", 1), signature("static reuse", 0, "uni_pc 20")}) == 4
    (tmp_path / "foresight").mkdir()
    (tmp_path / "foresight" / "new.py").write_text("changed")
    monkeypatch.setattr(jobs.hosts, "ROOT", tmp_path)
    # what others did need not run again when our code changes
    assert signature("Foresight forecast") != mine and signature("static reuse") == other


# ---- the real thing, short


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(monkeypatch):
    """A corner of the picture; nothing that is asked of two hosts goes by the size."""
    from bench import comfy

    monkeypatch.setattr(comfy, "SHAPE", (*comfy.SHAPE[:3], 6, 12))


@pytest.mark.skipif(not HAS_COMFYUI, reason="COMFYUI_PATH is not set")
def test_a_short_run_measures_contenders_of_both_hosts_lists_what_refuses_and_leaves_the_models_as_they_were(
    tmp_path, monkeypatch, one_thread, small
):
    from bench import contenders, jobs

    def refuse(denoiser, settings, calibration=None):
        raise ValueError("not for this model")

    broken = contenders.Contender("broken", "diffusers", "x", ({"x": 1},), refuse)
    monkeypatch.setitem(jobs.BY_NAME, "broken", broken)
    names = [("EasyCache", 4), ("static reuse", 0), ("TaylorSeer lite", 0), ("DBCache", 3), ("Spectrum, degree 1", 0),
             ("Spectrum, degree 1", 4), ("FSampler h2", 0), ("Foresight paper", 1)]  # fmt: skip
    short = Workload("short", "euler", (6,), 3.0)
    job = jobs.Job("wan", short, "red ball moving up", 5, (*names, ("broken", 0)), weigh=True)
    found = jobs.result(job, tmp_path)
    assert found["pristine"] == {"comfyui": True, "diffusers": True}
    assert found["hosts_agree_db"] > jobs.AGREE
    (refused,) = (p["cannot_run"] for p in found["points"] if p["contender"] == "broken")
    assert refused == "ValueError: not for this model"
    points = {p["contender"] + p["settings"].get("second_pass", False) * " twice": p
              for p in found["points"] if "cannot_run" not in p}  # fmt: skip
    assert points["static reuse"]["work_share"] == 0.5  # 3 of 6 evaluations
    # of 6 steps 3 are warmup and the first after it is full; its hidden states are kept for the other two
    assert 4 / 6 <= points["Foresight paper"]["work_share"] < 1
    assert points["TaylorSeer lite"]["work_share"] == pytest.approx(4 / 6)  # 3 first, then every second: 0 1 2 - 4 -
    assert points["Spectrum, degree 1"]["work_share"] == pytest.approx(4 / 6)  # 0 - 2 - 4 5
    assert points["Spectrum, degree 1 twice"]["work_share"] == pytest.approx(4 / 6)  # the second pass runs no block
    assert points["FSampler h2"]["work_share"] == 1.0  # 2 first and 3 last are protected, the one between is not due
    for point in points.values():
        assert point["time_ratio"] > 0 and point["held_bytes"] >= 0
        assert (point["psnr"] == jobs.SAME) == (point["work_share"] == 1.0), point
    assert jobs.result(job, tmp_path) == found  # from the file


@pytest.mark.skipif(not HAS_COMFYUI, reason="COMFYUI_PATH is not set")
@pytest.mark.parametrize(
    "sampler, stages, cfg",
    [("uni_pc", (4,), 4.0), ("res_multistep", (3,), 4.0), ("euler_ancestral", (3,), 4.0), ("heun", (2,), 4.0),
     ("euler", (3,), 1.0), ("euler", (2, 2), 4.0)],
)  # fmt: skip
def test_both_hosts_run_every_workload_alike(sampler, stages, cfg, tmp_path, monkeypatch, one_thread, small):
    from bench import jobs

    name = "wan" if len(stages) == 1 else "pair"
    monkeypatch.setitem(workloads.NETWORKS, "pair", ("wan", "wan_deep"))
    workload = Workload("short", sampler, stages, 5.0, cfg)
    job = jobs.Job(name, workload, "red ball moving up", 5, (("EasyCache", 4), ("static reuse", 0)))
    found = jobs.run(job, tmp_path)
    assert found["hosts_agree_db"] > jobs.AGREE and found["pristine"] == {"comfyui": True, "diffusers": True}
    (share,) = (point["work_share"] for point in found["points"] if point["contender"] == "static reuse")
    counts = [workloads.evaluations(sampler, steps) for steps in stages]
    # every second evaluation of a stage, the first with them
    assert share == pytest.approx(sum((count + 1) // 2 for count in counts) / sum(counts))


@pytest.mark.skipif(not HAS_COMFYUI, reason="COMFYUI_PATH is not set")
def test_the_first_stage_leaves_its_end_open_as_it_does_for_a_user(monkeypatch, one_thread):
    """Where nobody goes on from it, the last step of a stage is computed."""
    from bench import jobs, peers

    monkeypatch.setitem(workloads.NETWORKS, "pair", ("wan", "wan_deep"))
    demo, _ = jobs.both_hosts("pair")
    workload = Workload("short", "euler", (5, 5), 5.0, cfg=1.0)
    patched = [peers.foresight(demo, p, {"method": "forecast", "threshold": 2.0}) for p in demo.plain(workload.shift)]
    demo.sample(patched, "red ball moving up", 5, workload)
    last_of_first, _ = (run["evaluations"][-1] for run in demo.newest_runs(2))
    assert sum(last_of_first["reused"])
    demo.sample([patched[0]], "red ball moving up", 5, Workload("alone", "euler", (5,), 5.0, cfg=1.0))
    assert not sum(demo.newest_run()["evaluations"][-1]["reused"])


@pytest.mark.skipif(not HAS_COMFYUI, reason="COMFYUI_PATH is not set")
def test_the_sampling_check_decides_the_same_with_the_same_rows():
    from bench import jobs, sampling_check

    jobs.both_hosts("wan")
    # changes of evaluations 1 to 5 for two blocks; lambda = 1 + 0.1 x 1 with W = 3
    changes = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.5, 2.0], [1.1, 0.0], [1.2, 0.1]])
    decided = sampling_check.decisions(changes, 3, 1.0)
    assert decided.tolist() == [[True, False], [True, True], [False, True]]
