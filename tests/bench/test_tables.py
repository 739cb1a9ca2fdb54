"""The benchmark's fronts, standard errors and tables, by hand."""

import json
import math
import statistics

import pytest

from bench import fronts, pages, plots, quality


def row(speed: float, psnr: float, name: str = "a", cpu: float | None = None, **given) -> dict:
    """A point with two prompts that are 1 dB above and below the mean."""
    figures = {
        "work_share": 1 / speed,
        "time_ratio": 1.0,
        "cpu_ratio": 1 / (cpu or speed),
        "psnr": psnr,
        "ssim": psnr / 100,
    }
    figures["temporal_psnr"] = psnr
    spread = {"psnr": 1.0, "ssim": 0.01}
    by_prompt = {f: [v + spread.get(f, 0), v - spread.get(f, 0)] for f, v in figures.items()}
    base = {"model": "wan", "workload": "euler 20", "contender": name, "recommended": False, "psnr_worst": psnr - 1}
    return {**base, **figures, "by_prompt": by_prompt, "settings": {"threshold": speed}, **given}


def data(rows: list[dict]) -> dict:
    machine = {"processes": 2, "cores": 2, "processor": "P"}
    facts = {"half": "report", "prompts": [1, 2], "minutes": 60.2, "left_out": ["experts is left out: no weights."]}
    return {"machine": machine, **facts, "rows": rows}


# ---- fronts


def test_the_front_leaves_out_what_another_point_beats_and_what_is_slower_than_plain():
    # (1.5, 40) is slower and worse than (1.8, 41); (0.9, 60) is slower than plain
    assert fronts.front([(2.0, 35), (1.5, 40), (1.8, 41), (1.2, 50), (0.9, 60)]) == [(1.2, 50), (1.8, 41), (2.0, 35)]


def test_speedup_is_interpolated_between_the_two_nearest_points_of_the_front():
    points = [(1.2, 50.0), (2.0, 40.0)]
    # 45 dB is half of the way from 50 to 40, so the speed-up is half of the way from 1.2 to 2.0
    assert fronts.speedup_at(points, 45) == (pytest.approx(1.6), False)
    assert fronts.speedup_at(points, 40) == (2.0, False)


def test_quality_is_interpolated_the_other_way_round():
    points = [(1.2, 50.0), (2.0, 40.0)]
    assert fronts.quality_at(points, 1.6) == (pytest.approx(45.0), False)  # half of the way
    assert fronts.quality_at(points, 2.0) == (pytest.approx(40.0), False)
    assert fronts.quality_at(points, 1.2) == (50.0, False)


def test_nothing_is_extrapolated():
    points = [(1.2, 50.0), (2.0, 42.0)]
    assert fronts.speedup_at(points, 35) == (2.0, True)  # all of it is above: at least its fastest point
    assert fronts.speedup_at(points, 55) is None  # all of it is below
    assert fronts.speedup_at([(0.8, 60.0)], 40) is None  # slower than plain
    assert fronts.quality_at(points, 1.1) == (50.0, True)  # all of it is faster: at least its slowest point
    assert fronts.quality_at(points, 2.5) is None  # all of it is slower
    assert fronts.quality_at([], 2.0) is None


def test_nothing_is_claimed_over_a_point_that_disproves_it():
    points = [(1.0, 75.0), (1.6, 38.0), (2.0, 39.0)]
    assert fronts.speedup_at(points, 45) == (pytest.approx(1 + 0.6 * 30 / 37), False)  # not 1.83
    assert fronts.quality_at(points, 1.3) == (pytest.approx(56.5), False)
    assert fronts.quality_at(points, 1.5) == (pytest.approx(75 - 37 * 5 / 6), False)  # not 57
    assert fronts.quality_at(points, 1.8) == (39.0, False)  # a faster one has it


def test_a_point_at_which_nothing_was_reused_in_some_prompt_is_on_no_front():
    in_one_prompt = row(1.1, 61)
    in_one_prompt["by_prompt"]["psnr"] = [23, fronts.SAME]
    rows = [row(1.01, fronts.SAME), in_one_prompt, row(1.5, 40), {"cannot_run": "no"}]
    assert fronts.points_of(rows, "cpu_ratio", "psnr") == [(pytest.approx(1.5), 40)]


# ---- standard errors


def test_the_jackknife_is_the_usual_standard_error_of_a_mean():
    values = [3.0, 5.0, 10.0]
    means_without_one = [7.5, 6.5, 4.0]
    usual = statistics.stdev(values) / math.sqrt(3)
    assert fronts.jackknife(means_without_one) == pytest.approx(usual)


def test_a_reading_has_the_error_of_reading_without_each_prompt():
    rows = [row(1.0, 50), row(2.0, 40)]  # each prompt 1 dB above or below: the front moves as a whole
    found = fronts.read(rows, fronts.quality_at, 1.5)
    assert (found.value, found.bound) == (pytest.approx(45.0), False)
    assert found.error == pytest.approx(1.0)  # stdev of (46, 44) is sqrt(2), over sqrt(2) prompts
    found = fronts.read(rows, fronts.speedup_at, 45)
    assert found.value == pytest.approx(1.5) and found.error == pytest.approx(0.1)  # 1 dB is 0.1x on this line


def test_a_bound_and_a_reading_that_hangs_on_one_prompt_have_no_error():
    rows = [row(1.0, 50), row(2.0, 40)]
    assert fronts.read(rows, fronts.speedup_at, 30) == fronts.Reading(2.0, True)
    assert fronts.read(rows, fronts.speedup_at, 49.5).error is None  # the worse prompt's front begins at 49
    assert fronts.read(rows, fronts.speedup_at, 55) is None


# ---- the tables


def test_a_table_has_the_speedup_by_work_its_error_and_the_cpu_time_and_its_leader_by_work():
    rows = [row(1.0, 50), row(2.0, 40, cpu=1.8), row(1.2, 46, "b", cpu=3.0), row(1.7, 44, "b", cpu=4.0)]
    text = pages.at_qualities(rows)
    # at 45 dB a is at 1.5 by work and 1.4 by CPU time, b half of the way from 1.2 to 1.7 and from 3.0 to 4.0
    assert "| a | **1.50x ± 0.10** (1.40) | **2.00x" in text
    assert "| b | 1.45x" in text and "(3.50)" in text
    assert "| a | **1.50x ± 0.10** (1.40) | **2.00x** (1.80) | **>=2.00x** (>=1.80) | **>=2.00x** (>=1.80) |" in text


def test_the_contenders_are_in_the_order_of_their_speedups_by_work():
    rows = [row(1.5, 50, "slow", cpu=9.0), row(2.0, 50, "fast", cpu=1.0), row(3.0, 20, "bad"), {"cannot_run": "no"}]
    assert pages.ranked(rows) == ["fast", "slow", "bad"]


def test_the_other_way_round_it_has_psnr_and_ssim_at_a_speedup():
    text = pages.at_speeds([row(1.0, 50), row(2.0, 40, cpu=1.5), row(2.0, 42, "b")])
    # at 1.5x a has 45 dB and an SSIM of 0.45 by work, and 40 dB at 1.5x by CPU time; b is faster, so at least 42
    assert "| a | **45.0 ± 1.0** (40.0), 0.4500 |" in text
    assert "| b | >=42.0 (>=42.0), 0.4200 |" in text
    assert "(-), 0.4000 | - | - |" in text  # by CPU time a does not reach 2x, and neither way 2.5x and 3x


def test_how_far_ahead_of_the_others_it_is():
    rows = [row(2.0, 50, pages.OURS), row(4.0, 40, pages.OURS), row(1.0, 60, "b"), row(2.0, 40, "b")]
    rows.append(row(9.0, 60, "Foresight paper"))  # is none of the others
    # at 45 dB ours is at 3.0 and b at 1.75; at 40 dB 4.0 and 2.0; below at least the same
    assert "| 1.71 (1.71) | 2.00 (2.00) | 2.00 (2.00) | 2.00 (2.00) |" in pages.at_qualities(rows)


def test_the_defaults_are_the_recommended_points_only():
    rows = [row(2.0, 40, recommended=True), row(3.0, 30), row(1.5, 41, workload="euler 50", recommended=True)]
    rows.append({**{k: rows[0][k] for k in ("model", "workload", "recommended")}, "contender": "c", "cannot_run": "no"})
    text = pages.defaults(rows)
    assert "| a | 2.00x (2.00), 40.0 ± 1.0, 0.4000 | 1.50x (1.50), 41.0 ± 1.0, 0.4100 |" in text
    assert "| c | cannot run |  |" in text and "30.0" not in text


def test_a_cap_is_in_no_mean_of_the_defaults():
    """What is as the plain video, since nothing was reused, says nothing of what reuse costs."""
    mixed, none = row(1.5, 70, recommended=True), row(1.0, 99, workload="euler 50", recommended=True)
    mixed["by_prompt"] |= {"psnr": [99.0, 41.0], "ssim": [1.0, 0.9]}
    none["by_prompt"]["psnr"] = [99.0, 99.0]
    assert "| a | 1.50x (1.50), 41.0, 0.9000 (1 of 2) | 1.00x (1.00), nothing reused |" in pages.defaults([mixed, none])
    assert "1.50x, 41.0 (41.0) dB" in pages.knob([{**mixed, "contender": pages.OURS}])
    assert "| 1.00x |" in pages.knob([{**none, "contender": pages.OURS}])


def test_what_the_threshold_does():
    text = pages.knob([row(2.0, 50, pages.OURS), row(4.0, 40, pages.OURS), row(2.0, 40, "b")])
    assert "| Wan, bundled, euler 20 | 2.00x, 50.0 (49.0) dB | 4.00x, 40.0 (39.0) dB |" in text


def test_where_another_measure_disagrees_is_said():
    rows = [row(1.0, 60), row(3.0, 40), row(1.0, 50, "b"), row(3.0, 30, "b")]
    assert pages.disagreements(rows).endswith("nowhere.")
    for entry, ssim in zip(rows[2:], (0.995, 0.99), strict=True):  # b keeps the structure better
        entry["ssim"] = ssim
    assert "Wan, bundled, euler 20, 2x: PSNR a, ssim: b" in pages.disagreements(rows, (2.0,))


def test_readme_has_ours_and_the_best_of_the_others_at_one_speed_a_column():
    rows = [row(1.0, 50, pages.OURS), row(3.0, 40, pages.OURS)]
    for place in range(8):  # the first is the best of the others, the last does not reach 2x
        rows += [row(1.0, 44 - place, f"peer {place}"), row(3.0 if place < 7 else 1.5, 30 - place, f"peer {place}")]
    text = pages.readme(data(rows))
    assert text.splitlines()[0] == "| PSNR at | euler 20, 2x |"
    assert text.splitlines()[2] == "| Foresight forecast | **45.0 ± 1.0** |"
    assert [line.split(" | ")[0] for line in text.splitlines()[3:]] == [f"| peer {n}" for n in range(5)]


def test_readme_takes_the_mean_over_the_models_and_leaves_empty_what_one_of_them_lacks():
    rows = [row(2.0, 50, pages.OURS), row(2.0, 40, pages.OURS, model="cogvideox"), row(2.0, 45, "b")]
    rows.append(row(1.5, 45, "b", model="cogvideox"))
    text = pages.readme(data(rows))
    assert "| Foresight forecast | **45.0 ± 0.7** |" in text  # sqrt(1 + 1) / 2
    assert "| b | - |" in text


def test_the_page_says_where_it_comes_from_what_is_left_out_and_who_cannot_run():
    rows = [row(1.2, 50), {"model": "wan", "workload": "euler 20", "contender": "c", "recommended": True,
                           "cannot_run": "ValueError: no"}]  # fmt: skip
    text = pages.benchmarks(data(rows))
    assert "2 prompts of the half 'report'" in text and "experts is left out: no weights." in text
    assert "Cannot run on it: c (ValueError: no)." in text
    assert "## euler 20, shift 5, CFG 4" in text and "**Wan, bundled**" in text


def test_the_page_says_how_fast_those_are_that_run_in_one_column_only():
    rows = [row(1.1, 50, "PAB", workload="euler 50"), row(1.2, 50, "FasterCache", workload="euler 50"), row(2.0, 40)]
    assert "Their fastest point there is 1.20x by work." in pages.facts(data(rows))
    assert "Their fastest" not in pages.facts(data(rows[:2]))  # nothing else was run


def test_the_tables_go_between_the_comments_of_both_pages_and_nowhere_else(tmp_path):
    (tmp_path / "docs").mkdir()
    paths = [tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"]
    for path in paths:
        path.write_text(f"before\n{pages.BEGIN}\nof last time\n{pages.END}\nafter\n")
    pages.write(data([row(1.2, 50, pages.OURS), row(2.0, 40, pages.OURS)]), tmp_path)
    for path in paths:
        text = path.read_text()
        assert text.startswith(f"before\n{pages.BEGIN}\n") and text.endswith(f"{pages.END}\nafter\n")
        assert "of last time" not in text and "| Foresight forecast |" in text
    paths[1].write_text("no place")
    with pytest.raises(ValueError, match="no place for the table"):
        pages.write(data([row(1.2, 50)]), tmp_path)


def test_the_pages_of_this_project_have_the_place():
    for name in ("README.md", "docs/benchmarks.md"):
        text = (pages.ROOT / name).read_text(encoding="utf-8")
        assert text.count(pages.BEGIN) == text.count(pages.END) == 1


def test_a_run_is_kept_and_its_tables_are_made_again_without_running(tmp_path, monkeypatch, capsys):
    out = tmp_path / "some.json"
    rows = [row(1.2, 50, pages.OURS), row(2.0, 40, pages.OURS)]
    monkeypatch.setattr(quality, "run", lambda args: data(rows))
    quality.main(["--out", str(out), "--models", "experts", "--workloads", "euler 10 + 10"])
    said = capsys.readouterr().out
    assert json.loads(out.read_text())["rows"] == rows
    monkeypatch.setattr(quality, "run", None)
    quality.main(["--out", str(out), "--table"])
    assert capsys.readouterr().out.strip() in said
    assert [path.name for path in tmp_path.glob("*.png")] == ["some-wan-euler20.png"]


def test_labels_are_pushed_apart_and_stay_above_the_lowest():
    assert plots.spread([50.0, 49.0, 30.0], gap=2.0, lowest=20.0) == [50.0, 48.0, 30.0]
    assert plots.spread([30.0, 20.0, 20.0], gap=2.0, lowest=20.0) == [30.0, 22.0, 20.0]
