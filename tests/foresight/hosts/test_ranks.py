"""Two and four processes that make a video together with diffusers; see `support/rank_cases.py` for what they do."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")
if not hasattr(os, "fork") or not torch.distributed.is_available():
    pytest.skip("processes are forked here, and talk over torch.distributed", allow_module_level=True)

from foresight import ForecastConfig
from foresight.hosts.diffusers import apply_foresight
from foresight.hosts.ranks import Largest, Ranks, ranks_of
from support.diffusers_models import loop
from support.diffusers_transformers import wan

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 3.0  # seconds, of `rank_cases`
SLACK = 4.0  # for a machine that has other things to do
IN_VAIN = (
    "waited in vain for the other processes to decide (rank 0 of 2): one of them stopped, or runs without Foresight"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Case by case what each process found: `found["two"]["gives_up"][rank]`."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "support.rank_cases", str(folder)]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    loaded = {}
    for group, size in (("two", 2), ("four", 4), ("fail", 2)):
        files = [folder / f"{group}-{rank}.pt" for rank in range(size)]
        assert all(file.is_file() for file in files), result.stdout[-3000:] + result.stderr[-3000:]
        per_rank = [torch.load(file, weights_only=False) for file in files]
        loaded[group] = {case: [found[case] for found in per_rank] for case in per_rank[0]}
    return loaded


def same(runs):
    """Whether processes decided alike, and came to the same bits."""
    return all(run["kinds"] == runs[0]["kinds"] and torch.equal(run["x"], runs[0]["x"]) for run in runs)


def rms(a, b):
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("early", [True, False], ids=["applied before", "applied after"])
def test_two_processes_come_to_the_bits_of_one(found, threshold, early):
    for rank in found["two"]["same_as_one"]:
        alone, together = rank["alone", threshold], rank["together", threshold, early]
        assert same([alone, together]) and "r" in alone["kinds"]
        assert together["inactive"] is None and together["levels"] == alone["levels"]


def test_another_class_does_so_too(found):
    for rank in found["two"]["same_as_one"]:
        assert same([rank["other", "alone"], rank["other", "together"]]) and "r" in rank["other", "alone"]["kinds"]


def test_four_processes_come_to_the_bits_of_one(found):
    for rank in found["four"]["four"]:
        assert same([rank["alone"], rank["together"]]) and "r" in rank["alone"]["kinds"]


def test_where_all_is_computed_the_result_is_that_without_foresight(found):
    for rank in found["two"]["same_as_one"]:
        assert torch.equal(rank["nothing"]["x"], rank["plain"]["x"]) and "r" not in rank["nothing"]["kinds"]


def test_the_paper_method_leaves_a_spread_model_alone(found):
    for rank in found["two"]["same_as_one"]:
        assert rank["paper"]["inactive"] == "blocks are spread over 2 processes"
        assert torch.equal(rank["paper"]["x"], rank["plain"]["x"])


def test_the_process_that_measures_more_decides_for_both(found):
    runs = found["two"]["measures_more"]
    assert same([run["together"] for run in runs])
    assert runs[0]["together"]["kinds"].count("r") < runs[0]["alone"]["kinds"].count("r")
    assert runs[0]["together"]["kinds"] == runs[1]["alone"]["kinds"]


def test_one_that_gives_up_ends_it_for_both(found):
    runs = found["two"]["gives_up"]
    alone = found["two"]["measures_more"][0]["alone"]
    assert same(runs) and runs[0]["kinds"] == alone["kinds"][:13] + 17 * "p"
    assert runs[1]["inactive"] == "no memory here"
    assert runs[0]["inactive"] == "another process has given up, see its record"


def test_there_is_one_exchange_per_evaluation(found):
    for run in found["two"]["exchanges"]:
        assert len(run["exchanges"]) == len(run["kinds"]) == 30 and len(set(run["exchanges"])) == 1


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("processes", ["two", "four"])
def test_conds_over_processes_are_decided_about_as_in_one(found, processes, threshold):
    """Each process sees one cond; with four, two have the same one. From all sketches they know what guidance makes."""
    per_rank = found["two"]["guided_over_ranks"] if processes == "two" else [r["guided"] for r in found["four"]["four"]]
    runs, one = [rank[threshold] for rank in per_rank], found["two"]["same_as_one"][0]
    together, alone, plain = runs[0], one["alone", threshold], one["plain"]["x"]
    assert same(runs)
    assert abs(together["kinds"].count("r") - alone["kinds"].count("r")) <= 1
    decibels = 20 * math.log10(rms(together["x"], plain) / rms(alone["x"], plain))
    assert abs(decibels) < 2


def test_sharded_weights_with_another_video_in_each_process(found):
    runs = found["two"]["other_videos"]
    assert runs[0]["kinds"] == runs[1]["kinds"] and not torch.equal(runs[0]["x"], runs[1]["x"])
    for run in runs:
        assert run["class"].startswith("FSDP")  # `fully_shard` before `apply_foresight` is taken too
        assert run["kinds"].count("r") <= run["alone"]["kinds"].count("r")


def test_a_level_for_each_token_where_one_process_has_a_kept_frame_only(found):
    for run in found["two"]["token_levels"]:
        assert run["together"]["levels"] == run["alone"]["levels"] and run["together"]["levels"][0] == 1000
        assert same([run["alone"], run["together"]]) and "r" in run["alone"]["kinds"]
        assert run["whole"]["levels"] == pytest.approx(run["alone"]["levels"], rel=1e-5)  # the pipeline's scheduler's
        whole, alone = run["whole"]["kinds"], run["alone"]["kinds"]  # which does not know where it ends
        assert whole.count("r") >= alone.count("r") and whole.endswith("f") and run["whole"]["inactive"] is None
    assert same([run["whole"] for run in found["two"]["token_levels"]])


# ---- who decides together


def test_who_decides_together(found):
    first, second = found["two"]["found_ranks"]
    assert first["videos apart"] == first["alone"] == ("", None, None, True)
    assert first["given"] == ("2 processes (the group that was given)", 2, None, True)
    assert first["tokens"] == ("2 processes (diffusers' context parallelism)", 2, None, True)
    assert first["weights"] == ("2 processes (weights that are sharded)", 2, None, True)
    assert first["unknown"][1:3] == (
        None,
        "the tokens are split over processes, and nothing says which: say it with group=",
    )
    assert [second[name][3] for name in ("given", "tokens", "weights")] == [False] * 3  # one speaks in the log
    assert first["not in it"] == "group= does not have this process (rank 0) in it"


class Coordinator:
    """xfuser's, as far as it is asked."""

    def __init__(self, group, cpu=True):
        self.device_group, self.cpu_group = group, group if cpu else None


class State:
    """xfuser's module of groups."""

    _FS = None

    def __init__(self, group, pipeline=1, replica=True):
        self._pipeline = pipeline
        asked = ["get_model_replica_group"] if replica else [f"get_{x}_group" for x in ("sp", "cfg", "pp", "tp")]
        for name in asked:
            setattr(self, name, lambda: Coordinator(group))

    def model_parallel_is_initialized(self):
        return True

    def get_pipeline_parallel_world_size(self):
        return self._pipeline


@pytest.fixture
def three(monkeypatch):
    """A world of three processes that is not there: groups are lists of ranks, and this is rank 0."""
    dist = torch.distributed
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=(0, 1, 2): len(group))
    monkeypatch.setattr(dist, "get_rank", lambda group=(0, 1, 2): group.index(0) if 0 in group else -1)


@pytest.mark.parametrize("replica", [True, False], ids=["its newest version", "older ones"])
def test_xfuser_says_who_makes_the_video(three, monkeypatch, replica, caplog):
    caplog.set_level("INFO", "foresight.hosts.ranks")
    name = "xfuser.core.distributed.parallel_state"
    monkeypatch.setitem(sys.modules, name, State([0, 1, 2], replica=replica))
    found = ranks_of(torch.nn.Identity())
    assert found.words == "3 processes (xfuser's groups)" and found.worst.size == 3
    assert caplog.messages == ["Foresight decides together in 3 processes (xfuser's groups)"]
    monkeypatch.setitem(sys.modules, name, State([0], replica=replica))  # a video in each process
    assert ranks_of(torch.nn.Identity()) == Ranks()
    monkeypatch.setitem(sys.modules, name, State([0, 1, 2], pipeline=3, replica=replica))
    assert "pipeline parallel: a process has some of the blocks only" in ranks_of(torch.nn.Identity()).never


def test_each_process_of_a_grid_has_a_place_of_its_own(monkeypatch):
    world, places = tuple(range(6)), []
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=world: len(group))
    for rank in world:
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group=world, rank=rank: group.index(rank))
        grid = Largest([[rank - rank % 3 + i for i in range(3)], [rank % 3, rank % 3 + 3]])
        assert grid.size == grid.places == 6
        places.append(grid.place)
        twice = Largest([world, world])  # xfuser may have sharded the weights over those who make the video
        assert twice.size == twice.places == 6 and twice.place == rank
    assert sorted(places) == list(range(6))


def test_cache_dit_says_it_on_the_model(three):
    class Mesh:
        def get_all_groups(self):
            return [[0, 2]]

    model = torch.nn.Identity()
    model._parallelism_config = type("ParallelismConfig", (), {"_flat_mesh": Mesh()})()
    assert ranks_of(model).words == "2 processes (cache-dit)"


def test_one_process_decides_alone(monkeypatch):
    assert ranks_of(torch.nn.Identity()) == Ranks()
    with pytest.raises(ValueError, match="torch.distributed is not initialised: run the script with torchrun"):
        ranks_of(torch.nn.Identity(), group=object())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1)
    assert ranks_of(torch.nn.Identity()) == Ranks()


def test_pipeline_parallel_is_inactive_and_plain(three, monkeypatch):
    plain = loop(model := wan().model, "wan", steps=8)
    monkeypatch.setitem(sys.modules, "xfuser.core.distributed.parallel_state", State([0, 1, 2], pipeline=3))
    handle = apply_foresight(model, ForecastConfig(threshold=2.0))
    assert torch.equal(loop(model, "wan", steps=8), plain)
    assert handle.stats.inactive.startswith("pipeline parallel") and handle.stats.reused == 0


# ---- where one fails


def test_one_that_raises_ends_the_others(found):
    first, second = found["fail"]["one_raises"]
    assert second["error"] == "OSError: this one is broken" and "x" not in first
    assert first["error"].startswith("RuntimeError") and first["seconds"] - second["seconds"] < LIMIT + SLACK


def test_one_that_sleeps_is_not_waited_for_beyond_the_limit(found):
    first, second = found["fail"]["one_sleeps"]
    assert IN_VAIN in first["error"] and len(first["causes"]) == 2 and "x" not in second
    assert first["seconds"] < second["seconds"] < 2 * LIMIT + SLACK


def test_one_without_foresight_makes_no_video(found):
    first, second = found["fail"]["one_without"]
    assert IN_VAIN in first["error"] and first["seconds"] < LIMIT + SLACK and "error" in second


def test_other_settings_are_the_same_error_in_both_at_once(found):
    errors = [rank["error"] for rank in found["fail"]["other_settings"]]
    assert errors[0] == errors[1] and "Apart: another process runs Foresight with other settings" in errors[0]
    assert all(rank["seconds"] < LIMIT for rank in found["fail"]["other_settings"])
