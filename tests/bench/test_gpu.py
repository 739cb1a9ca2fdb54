"""The GPU benchmark: its smoke form on tiny models, what it forces, counts and leaves out, and the table it makes."""

import copy
import json
import warnings

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.supported_models

from bench import forced, gpu, gpu_bench, gpu_measure, gpu_plans, gpu_runs, gpu_table, real_models
from foresight import ForecastConfig, PaperConfig
from foresight.engine.forecast import Forecast
from foresight.engine.policy import policy_of
from foresight.engine.prefix import formulas
from foresight.engine.prefix.policy import ReusedPrefix

CPU = torch.device("cpu")
HERE = {  # ComfyUI has CogVideoX since 0.20
    name
    for name, model in real_models.MODELS.items()
    if model.kind != "cogvideox" or hasattr(comfy.supported_models, "CogVideoX_T2V")
}


VIDEO = {name for name in HERE if not real_models.MODELS[name].smoke_only}
IMAGE = HERE - VIDEO


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def wan():
    return gpu_bench.Bench(real_models.MODELS["wan-1.3b"], CPU, tiny=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "smoke.json"
    assert gpu.main(["--smoke", "--out", str(path)]) == 0
    return json.loads(path.read_text())


def test_smoke_measures_every_model(smoke):
    assert smoke["models"].keys() == real_models.MODELS.keys()
    for name, row in smoke["models"].items():
        if name not in HERE:
            assert row["skipped"] == "this ComfyUI has no CogVideoX_T2V: update it"
            continue
        assert not {"failed", "skipped"} & row.keys(), f"{name}: {row}"
        assert row["finite"], name
        assert row["forecast"]["left_out_seconds"] > 0 and row["forecast"]["held_bytes"] > 0, name
        if name in IMAGE:
            continue
        assert [rung["blocks"] / row["blocks"] for rung in row["by_depth"]] == [0, 0.25, 0.5, 0.75, 1]
        assert row["plain"]["seconds"] > 0 and row["easycache"]["seconds"] > 0, name
        assert row["syncs"] is None and "extra_states" not in row["memory"], "a CPU has neither"


def test_smoke_runs_every_schedule(smoke):
    for name in VIDEO:
        runs = smoke["models"][name]["runs"]
        # 14 steps, 3 of them warmup; 1 of 2: evaluations 4, 6, 8, 10, 12; 2 of 3: 4, 5, 7, 8, 10, 11, 13
        assert runs["n1r2"]["block_speedup"] == pytest.approx(14 / 9), name
        assert runs["n2r3"]["block_speedup"] == pytest.approx(14 / 7), name
        assert runs["recorded"]["block_speedup"] > 1, name
        # computed: 0, 1, 2, 13, and 5, 8, 11 or 6, 10
        assert runs["forecast3"]["block_speedup"] == pytest.approx(14 / 7), name
        assert runs["forecast4"]["block_speedup"] == pytest.approx(14 / 6), name
        of_ideal = runs["plain"]["seconds"] / runs["n1r2"]["seconds"] / (14 / 9)
        assert runs["n1r2"]["of_ideal"] == pytest.approx(of_ideal), name


def test_an_image_model_is_measured_with_forecast_alone(smoke):
    assert IMAGE == {"flux-dev"}
    row = smoke["models"]["flux-dev"]
    assert row.keys() == {"video", "conds", "plain", "finite", "forecast", "runs"}  # nothing of blocks, nothing failed
    assert row["plain"]["seconds"] > 0 and row["forecast"]["idle_seconds"] > 0
    # latents of 16 x 8 x 8 in fp32: two outputs and x' (D' is one of the outputs where all are computed), and the
    # outputs up to step 2, which might be taken back
    assert row["forecast"]["held_bytes"] == (3 + 3) * 4 * 16 * 8 * 8
    runs = row["runs"]
    assert runs.keys() == {"plain", "forecast3", "forecast4"}
    assert runs["forecast3"]["block_speedup"] == pytest.approx(14 / 7)
    assert runs["forecast4"]["block_speedup"] == pytest.approx(14 / 6)
    text = gpu_table.table(smoke)
    assert "\n\nflux-dev, 1024x1024, with forecast alone: " in text and "| flux-dev" not in text
    assert f"whole runs: forecast, 1 of 3 computed {runs['forecast3']['speedup']:.2f}x; forecast, 1 of 4" in text


def test_no_gpu_runs_an_image_model(capsys):
    assert set(gpu.usual(smoke=False)) == real_models.MODELS.keys() - IMAGE
    assert gpu.usual(smoke=True) == list(real_models.MODELS) and not IMAGE & gpu_plans.TITLES.keys()
    with pytest.raises(SystemExit):
        gpu.main(["--models", "wan-1.3b", "flux-dev"])
    assert "--models flux-dev: an image model runs with --smoke only" in capsys.readouterr().err


def test_models_whose_guidance_is_an_input_are_sampled_without_cfg_and_the_others_with(smoke):
    assert {name for name in HERE if smoke["models"][name]["conds"] == 1} == {"hunyuan-video", "flux-dev"}


@pytest.mark.parametrize("name", sorted(HERE))
def test_full_size_has_the_published_number_of_parameters(name):
    model = real_models.MODELS[name]
    network = real_models.network(model, "meta").diffusion_model
    found = sum(p.numel() for p in network.parameters()) / 1e9
    assert found == pytest.approx(model.parameters, rel=0.01)
    assert {p.device.type for p in network.parameters()} == {"meta"}, "all of it is made on the device that was named"


def test_weights_are_made_in_bf16(wan):
    weights = dict(wan.patcher.model.diffusion_model.named_parameters())
    assert weights["blocks.0.ffn.0.weight"].dtype == torch.bfloat16
    assert weights["blocks.0.ffn.0.weight"].detach().float().std() == pytest.approx(real_models.WEIGHT_STD, rel=0.1)
    assert not weights["blocks.0.ffn.0.bias"].any()


def test_missing_model_is_left_out_by_name(monkeypatch):
    monkeypatch.delattr(comfy.supported_models, "WAN21_T2V")
    row = {}
    gpu_measure.attempt(real_models.MODELS["wan-14b"], row, CPU, True, lambda bench: pytest.fail("was built"))
    assert row == {"skipped": "this ComfyUI has no WAN21_T2V: update it"}


def test_out_of_memory_and_failures_are_noted_and_do_not_stop():
    def exhaust(bench):
        raise torch.OutOfMemoryError("CUDA out of memory")

    row = {"blocks": 4}
    gpu_measure.attempt(real_models.MODELS["wan-1.3b"], row, CPU, True, exhaust)
    assert row == {"blocks": 4, "skipped": "out of GPU memory beside 2.6 GiB of weights"}
    gpu_measure.attempt(real_models.MODELS["wan-1.3b"], row, CPU, True, lambda bench: bench.nonsense)
    assert row["failed"] == "AttributeError: 'Bench' object has no attribute 'nonsense'"


def test_schedules():
    assert forced.all_blocks(9, 3, 2, 4) == [-1, -1, -1, -1, 3, -1, 3, -1, 3]
    assert forced.all_blocks(9, 3, 3, 4) == [-1, -1, -1, -1, 3, 3, -1, 3, 3]
    assert forced.ladder(2, 2, 8) == [-1, -1, -1, 1, 3, 5, 7, -1, 1, 3, 5, 7, -1]
    assert forced.scaled([0.0, 0.5, 1.0], 30) == [-1, 14, 29]


def test_forced_run_goes_through_the_engine_and_leaves_it_as_it_was(wan):
    depths = [-1, -1, -1, 2, -1, 0, -1, 3, -1]
    run = wan.forced(depths, 2, 2)
    assert [forced.depth_of(e) for e in run.stats["evaluations"]] == depths
    # 2 conds: 3 of 4 blocks reused, then 1, then all
    assert run.stats["reused"] == 2 * (3 + 1 + 4)
    assert policy_of(PaperConfig()) is ReusedPrefix


def test_forced_forecast_goes_through_the_engine_and_leaves_it_as_it_was(wan):
    computed = forced.every(10, 3)
    assert computed == [True, True, True, False, False, True, False, False, True, True]
    run = wan.forecast(computed)
    assert run.finite and run.stats["reused"] == 4
    assert policy_of(ForecastConfig()) is Forecast
    with pytest.raises(RuntimeError, match="Foresight computed .* was asked for"):
        wan.forecast([False, True, True, True])  # no forecast without an output


def test_engine_that_does_not_follow_is_an_error(wan, monkeypatch):
    monkeypatch.setattr(formulas, "qualifies", lambda delta, limit: limit < 0)
    with pytest.raises(RuntimeError, match="reused up to blocks .* was asked for"):
        wan.forced([-1, -1, -1, 3, -1], 2, 2)


def test_reusing_everything_gives_the_last_full_output_of_the_blocks(wan):
    """A forced run is not a plain one: it does leave blocks out."""
    block, calls = wan.patcher.model.diffusion_model.blocks[0], []
    handle = block.ffn.register_forward_hook(lambda *_: calls.append(1))
    try:
        wan.forced([-1, -1, -1, 3, -1], 2, 2)
    finally:
        handle.remove()
    assert len(calls) == 4


def test_hidden_states_and_samples_of_both_conds(wan):
    hidden, samples, seconds = wan.first_look()
    # latent 3 x 4 x 6, patches of 1 x 2 x 2: 18 tokens of 48 channels in bf16 for either cond
    assert hidden == 2 * 18 * 48 * 2
    # stride 3 of 18 rows: 6 rows for each of 4 blocks
    assert samples == 2 * 4 * 6 * 48 * 2
    assert seconds > 0


def test_no_time_left_is_noted(wan):
    row = {"plain": {"seconds": 10.0}}
    gpu_measure.whole_runs(wan, row, [0.0] * 14, deadline=0.0)
    assert row["runs"] == {"plain": {"skipped": "140 s, and 0 s were left"}}
    gpu_measure.evaluate(wan, row, repeats=5, deadline=0.0)
    assert row["skipped"].endswith("do not fit into the 0 s left") and "by_depth" not in row


def test_memory_in_hidden_states():
    # 1000 bytes more, 200 of them samples, a hidden state of all streams takes 400: 2 of them
    assert gpu_measure.memory(5000, 6000, hidden=400, samples=200)["extra_states"] == 2


class _Event:
    """A CUDA event whose time is told."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = _Event.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_clock_of_a_gpu_counts_syncs_between_evaluations(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def evaluate(syncs):
        for _ in range(syncs):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        _Event.now += 250.0  # ms

    clock = forced.Clock(torch.device("cuda"), syncs=True)
    with clock:
        for syncs in (3, 1, 2, 1):
            clock(evaluate, syncs)
    assert modes == ["warn", "default"]
    assert clock.seconds() == [0.25, 0.25, 0.25]
    assert clock.syncs() == [3, 1, 2]
    assert list(clock.sync_places().values()) == [6]
    assert clock.evaluation == 3


def test_bench_counts_what_a_cache_adds(wan, monkeypatch):
    """As on a GPU, with a read-back that says when it waits."""
    from foresight.engine import Run

    read_back = Run.read_back

    def tell(self, *args):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return read_back(self, *args)

    monkeypatch.setattr(Run, "read_back", tell)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    enter = forced.Clock.__enter__

    def counting(self):
        self._syncs = True
        return enter(self)

    monkeypatch.setattr(forced.Clock, "__enter__", counting)
    found = gpu_measure.syncs(wan)
    assert (found["plain"], found["foresight"], found["forecast"], found["easycache"]) == (0, 1, 1, 0)
    assert [place.split(":")[0] for place in found["places"]] == ["bench/test_gpu.py"]


def _card(results):
    """Results as a card gives them, from those of the smoke test."""
    results = copy.deepcopy(results)
    results["smoke"] = False
    row = results["models"]["wan-1.3b"]
    results["models"] = {"wan-1.3b": row, "wan-14b": {"video": "x", "skipped": "out of GPU memory"}}
    row["plain"] = {"seconds": 1.5, "drift": 0.002}
    row["idle"]["overhead"] = 0.004
    row["memory"] |= {"extra_states": 1.21, "samples_bytes": 3 << 20}
    row["syncs"] = {"plain": 0, "foresight": 1, "forecast": 1, "easycache": 2, "places": {}}
    row["forecast"] |= {"overhead": 0.001, "left_out_of_plain": 0.002}
    for run in gpu_table.TITLES:
        row["runs"][run] |= {"speedup": 1.5, "block_speedup": 1.54, "of_ideal": 0.974}
    return results


def test_table_is_made_from_the_figures(smoke):
    text = gpu_table.table(_card(smoke))
    line = next(line for line in text.splitlines() if line.startswith("| wan-1.3b"))
    assert "| 1.500 s (+0.2% drift) | +0.4% |" in line
    assert line.endswith("| 1.21 + 3 MiB | 1; 1; 2 | +0.1%; 0.2% of plain |")
    assert text.count("1.50x of 1.54x: 0.974") == 5
    assert "Targets missed: none of those that were measured." in text
    assert "Not measured, or not in full: wan-14b: out of GPU memory." in text
    assert "forced" in text


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("idle", "overhead", 0.02, "wan-1.3b overhead +2.0% (drift +0.2%)"),
        ("memory", "extra_states", 1.4, "wan-1.3b memory 1.40"),
        ("syncs", "foresight", 2, "wan-1.3b syncs 2 (foresight)"),
        ("forecast", "overhead", 0.02, "wan-1.3b forecast overhead +2.0% (drift +0.2%)"),
    ],
)
def test_missed_targets_are_named(smoke, part, key, value, said):
    results = _card(smoke)
    results["models"]["wan-1.3b"][part][key] = value
    assert f"Targets missed: {said}." in gpu_table.table(results)


def test_missed_share_of_the_ideal_is_named(smoke):
    results = _card(smoke)
    results["models"]["wan-1.3b"]["runs"]["n2r3"]["of_ideal"] = 0.96
    assert "Targets missed: wan-1.3b all blocks, 2 of 3 0.960." in gpu_table.table(results)


def test_smoke_table_says_that_it_says_nothing(smoke):
    text = gpu_table.table(smoke)
    assert text.startswith("**Smoke test on a CPU with tiny models: these figures say nothing.**")
    assert "Targets missed" not in text


def test_without_results_the_table_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "FOLDER", tmp_path)
    assert gpu.main(["--table"]) == 0
    assert capsys.readouterr().out == "not measured on a GPU yet\n"
    assert gpu.result_path("NVIDIA H100 80GB HBM3") == tmp_path / "gpu-nvidia-h100-80gb-hbm3.json"


def test_results_of_the_same_card_and_code_are_added_to(tmp_path, capsys):
    path, facts = tmp_path / "gpu.json", {"machine": {"card": "A"}, "engine": "1"}
    path.write_text(json.dumps({**facts, "models": {"latte": {}}}))
    assert gpu.load(path, facts)["models"] == {"latte": {}}
    assert gpu.load(path, {**facts, "engine": "2"})["models"] == {}
    assert "is of another machine, code or settings" in capsys.readouterr().out


def test_model_for_which_no_time_is_left_keeps_what_an_earlier_session_measured(smoke, tmp_path):
    path = tmp_path / "smoke.json"
    path.write_text(json.dumps(smoke))
    gpu.main(["--smoke", "--models", "latte", "--minutes", "0", "--out", str(path)])
    found = json.loads(path.read_text())["models"]
    assert found["latte"] == smoke["models"]["latte"] and found.keys() == smoke["models"].keys()

    gpu.main(["--smoke", "--models", "latte", "--minutes", "0", "--out", str(tmp_path / "new.json")])
    found = json.loads((tmp_path / "new.json").read_text())["models"]
    assert found == {"latte": {"video": "512x512, 16 frames", "skipped": "evaluations: no time left"}}


def test_whole_runs_follow_the_plan_and_weights_come_from_a_file(tmp_path):
    names = sorted(HERE & {"wan-1.3b", "cogvideox-2b", "latte"})
    assert gpu_runs.main(["--smoke", "--steps", "20", "--out", str(tmp_path / "runs.json"), "--models", *names]) == 0
    found = json.loads((tmp_path / "runs.json").read_text())
    assert list(found["models"]) == names and found["smoke"] and not found["dynamic_vram"]
    for row in found["models"].values():
        run = row["all of the memory"]
        assert "little memory" not in row, "a CPU has no memory of its own to fill"
        assert row["plans"].keys() == {"20", "30", "50"} and run["computed"] == row["plans"]["20"] < 20
        assert run["plain_is_plain"] and run["idle_is_plain"] and run["finite"] and run["inactive"] is None
        assert run["left_out_evaluation"] < run["computed_evaluation"]


def test_a_model_that_fails_costs_no_other_its_run(tmp_path, monkeypatch, capsys):
    def save(model, *_):
        raise real_models.NotThere(f"no {model.name}")

    monkeypatch.setattr(real_models, "save", save)
    out = tmp_path / "runs.json"
    assert gpu_runs.main(["--smoke", "--out", str(out), "--models", "latte", "wan-1.3b"]) == 1
    assert [row["failed"] for row in json.loads(out.read_text())["models"].values()] == [
        "NotThere: no latte",
        "NotThere: no wan-1.3b",
    ]


def test_the_readme_has_the_table_of_the_measured_runs():
    results = json.loads(gpu_plans.RESULT.read_text())
    assert not results["smoke"] and results["dynamic_vram"] and results["machine"]["driver"]
    for row in results["models"].values():
        for run in (row["all of the memory"], row["little memory"]):
            assert run["plain_is_plain"] and run["idle_is_plain"] and run["finite"] and run["inactive"] is None
            assert run["computed"] == row["plans"][str(row["steps"])]
    assert gpu_plans.table(results) in (gpu_plans.ROOT / "README.md").read_text(encoding="utf-8")


def test_refusals(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for argv, said in ((["--repeats", "3"], "must be at least 5"), ([], "there is no CUDA GPU")):
        with pytest.raises(SystemExit):
            gpu.main(argv)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0, 2.0])
def test_the_presets_of_the_readme_are_what_is_planned(threshold):
    page = (gpu_plans.ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.replace("*", "").startswith(f"| {threshold:g} |"))
    runs = (20, True), (30, True), (50, True), (8, False)
    plans = (f"{steps / gpu_plans.planned(steps, threshold, guided):.1f}x" for steps, guided in runs)
    assert row.endswith(f"| {' | '.join(plans)} |")
