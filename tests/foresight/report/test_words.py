"""The words of the live map, `js/words.js`, run by node: they say what the report says."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from foresight.report import figures

WORDS = Path(__file__).resolve().parents[3] / "js" / "words.js"


@pytest.fixture
def say(tmp_path):
    """Evaluates an expression with everything that the file exports, and gives its value."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed here")
    for path in (WORDS, WORDS.with_name("strip.js")):
        code = path.read_text(encoding="utf-8").replace("./words.js", "./words.mjs")
        (tmp_path / path.name).with_suffix(".mjs").write_text(code, encoding="utf-8")

    def evaluate(expression: str, run: dict | None = None):
        code = "import * as words from './words.mjs'; import * as strip from './strip.mjs';"
        code += f"const run = {json.dumps(run)};"
        code += f"console.log(JSON.stringify({expression}));"
        command = ["node", "--input-type=module", "-e", code]
        return json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)

    return evaluate


def record(**more) -> dict:
    """Four of five steps planned; so far one evaluation was computed and one left out."""
    unknown = {"ratio": [None], "share": None, "expected": None, "missed": None, "missed_parts": []}
    rows = [{"computed": [2], "reused": [0], **unknown}, {"computed": [0], "reused": [2], **unknown}]
    figures_of_run = dict(reuse_ratio=0.5, reused=2, estimated_speedup=1.5, seconds_full=2.0, seconds_reuse=0.00031)
    rest = dict(peak_bytes=3 << 20, in_ram=False, parts=[], restarts=0, uncorrected=None, inactive=None, done=False)
    return {"format": figures.FORMAT, "planned": 4, "steps": 5, "evaluations": rows, **figures_of_run, **rest, **more}


def test_the_plan_stands_there_before_the_first_evaluation(say):
    begun = record(evaluations=[], reuse_ratio=0, reused=0, seconds_full=None, seconds_reuse=None)
    assert say("words.figuresOf(run, 5)", begun) == [
        "evaluation 0 of 5 · 0 % left out",
        "plan: 4 of 5 steps computed, 1.25x",
    ]


def test_at_the_end_it_says_what_became_of_the_plan(say):
    assert say("words.figuresOf(run, 2)", record(done=True, restarts=1, uncorrected="no memory", inactive="why")) == [
        "evaluation 2 of 2 · 50 % left out · 1.50x (estimated)",
        "plan: 4 of 5 steps computed, 1.25x; it became 1 of 2 evaluations",
        "2.00 s per full evaluation, 0.310 ms with reuse · 3.0 MiB held",
        "sampler started again once with better outputs",
        "forecasts not corrected: no memory",
        "inactive: why",
    ]
    plan = say("words.planOf(run)", record(done=True, steps=2, planned=2))
    assert plan == "plan: 2 of 2 steps computed, 1.00x; it became 1"  # one evaluation a step
    assert say("words.planOf(run)", record(planned=None)) is None  # the method paper has none


def test_what_an_evaluation_was_stands_in_one_line(say):
    row = {"kind": "warmup", "computed": [1], "reused": [0], "ratio": [None], "share": 0.2}
    row |= {"expected": None, "missed": None, "missed_parts": []}
    assert say("words.evaluationOf(run, [])", row) == "computed (warmup), 20.0 % of the way"
    row |= {"kind": "reuse", "computed": [0], "reused": [1], "ratio": [0.5], "expected": 0.02, "missed": 0.03}
    assert say("words.evaluationOf(run, [])", row) == (
        "left out, 20.0 % of the way, 0.50 of the limit, error 2.0 % predicted, 3.0 % real"
    )
    assert say("words.errorsOf(run)", row) == {"predicted": 0.5, "real": 0.75}


def test_video_and_audio_each_have_their_error(say):
    row = {"kind": "reuse", "computed": [0], "reused": [1], "ratio": [None], "share": None, "expected": None}
    first, second = ({**row, "missed": error, "missed_parts": [0.01, error]} for error in (0.03, 0.02))
    assert say("words.evaluationOf(run, ['video', 'audio'])", first) == (
        "left out, 3.0 % real (video 1.0 %, audio 3.0 %)"
    )
    run = record(evaluations=[first, second], parts=["video", "audio"])
    line = "what was left out is off by 3.0 % of the noise at most"
    assert f"{line} (video 1.0 %, audio 3.0 %)" in say("words.figuresOf(run, 2)", run)
    run["evaluations"][1]["missed_parts"] = []  # of one evaluation the parts are not known
    assert line in say("words.figuresOf(run, 2)", run)


def test_the_steps_of_the_plan_that_are_still_to_come(say):
    outlook = [{"level": 1 - k / 4, "share": 0.25, "computes": True} for k in range(4)]
    begun = {"outlook": outlook, "inactive": None, "done": False, "evaluations": []}
    assert len(say("words.aheadOf(run)", begun)) == 4
    assert say("words.aheadOf(run)", {**begun, "evaluations": [{"level": 0.75}]}) == outlook[2:]
    assert say("words.aheadOf(run)", {**begun, "evaluations": [{"level": None}]}) == outlook[1:]
    untold = [{**step, "level": None} for step in outlook]  # as in diffusers
    assert say("words.aheadOf(run)", {**begun, "outlook": untold, "evaluations": [{"level": 0.75}]}) == untold[1:]
    for over in ({"inactive": "no room"}, {"done": True}, {"outlook": None}):
        assert say("words.aheadOf(run)", {**begun, **over}) == []


def test_a_sampler_that_evaluates_twice_has_columns_for_all_that_is_to_come(say):
    outlook = [{"level": 1 - k / 4, "share": 0.25, "computes": True} for k in range(4)]
    row = {"reused": [0], "computed": [1], "ratio": [None], "share": 0.25, "expected": None, "missed": None}
    rows = [{**row, "level": level} for level in (1.0, 0.75, 0.75)]  # Heun in its second step
    run = {"outlook": outlook, "inactive": None, "done": False, "evaluations": rows}
    assert [column["alpha"] for column in say("strip.columnsOf(run)", run)] == [1, 1, 1, 0.35, 0.35]


def test_plan_and_times_are_worded_as_in_the_report(say):
    assert say("words.planOf(run)", record()) == f"plan: {figures.plan(record())}"
    for seconds in (0.0000123, 0.00031, 0.0012, 2.0, 99.96, 1234.5, 12345.0):
        shown, unit = say(f"words.seconds({seconds})").split()
        value, same = figures._seconds(seconds).split()
        assert (float(shown), unit) == (pytest.approx(float(value), abs=1), same) and "e" not in shown


def test_the_map_knows_the_format_of_the_records_and_says_when_they_have_another(say):
    assert say("words.FORMAT") == figures.FORMAT and say("words.unreadable(run)", record()) is None
    assert say("words.unreadable(run)", record(format=2)) == (
        "The server sends records of format 2, this page reads format 4. Reload the page."
    )


def test_the_empty_map_does_not_speak_of_blocks(say):
    assert say("words.EMPTY") == "What is left out shows here while the sampler runs."
