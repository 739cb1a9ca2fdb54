"""The real frontend in a headless Chromium, classic and Nodes 2.0: workflows, the Run button, the live map.

Every test runs on the frontend that ComfyUI pins and on the newest one, each with one of the renderers; with
FORESIGHT_EVERY_FRONTEND=1 each with both. FORESIGHT_SCREENSHOTS names a folder for the pictures; without it they go to
pytest's temporary one.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="ComfyUI is not installed here")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")

from foresight.report import figures
from tools import frontend, hosts
from tools.frontend import RENDERERS, STEPS, WORKFLOWS, Page


@pytest.fixture(scope="module")
def browser():
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(frontend.chromium())
        except RuntimeError as error:
            pytest.skip(str(error))
        yield found


@pytest.fixture(scope="module")
def pinned(tmp_path_factory):
    """A server with the frontend that ComfyUI asks for."""
    with frontend.comfyui(tmp_path_factory.mktemp("comfyui")) as host:
        yield host


@pytest.fixture(scope="module")
def newest(tmp_path_factory):
    """A server with the newest frontend, which users have before ComfyUI pins it."""
    page = Path(sys.prefix) / "newest-frontend" / "comfyui_frontend_package" / "static"
    if not page.is_dir():
        pytest.skip(f"there is no newer frontend in {page}: python run.py test brings it")
    with frontend.comfyui(tmp_path_factory.mktemp("newest"), page) as host:
        yield host


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = Path(os.environ.get("FORESIGHT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


PAIRS = [(renderer, which) for which in ("pinned", "newest") for renderer in RENDERERS]
if not os.environ.get("FORESIGHT_EVERY_FRONTEND"):
    PAIRS = [PAIRS[0], PAIRS[-1]]  # classic on the pinned one, Nodes 2.0 on the newest


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def opened(request, browser):
    """A page that one test after another works in, as a user does."""
    renderer, which = request.param
    page = Page(browser, request.getfixturevalue(which), renderer)
    page.renderer = renderer
    assert not page.errors  # of the pack being loaded
    yield page
    page.page.close()


@pytest.fixture
def page(opened):
    yield opened
    errors, opened.errors = opened.errors, []
    assert not errors


PROMPTS: dict[str, dict] = {}  # of the first renderer and frontend, by workflow


def test_every_workflow_opens_and_gives_the_same_prompt(page, pictures):
    for path in WORKFLOWS:
        result = page.load(path)
        assert not result["missing"] and not result["broken"], (path.stem, result)
        assert result["version"] == 0.4 and result["output"]
        prompt = result["output"]
        for node in prompt.values():  # of nodes that aren't ours, each frontend has its own titles and versions
            about, ours = node.pop("_meta"), node["class_type"].startswith("Foresight")
            node["title"] = about["title"] if ours else None
        assert PROMPTS.setdefault(path.stem, prompt) == prompt, path.stem
        kinds = [node["class_type"] for node in result["output"].values()]
        assert {"ForesightApply", "ForesightRay"} & set(kinds) and any(kind.startswith("Save") for kind in kinds), (
            path.stem
        )
        if os.environ.get("FORESIGHT_SCREENSHOTS"):  # nobody looks at them else, and each takes a second
            page.fit()
            page.page.screenshot(path=pictures / f"{path.stem}.{page.renderer}.png")


def test_run_fills_the_map_cell_by_cell_with_the_figures_of_the_server(page, pictures):
    steps = 30 if page.renderer == "classic" else 28  # a new page shows the last run of its workflow
    page.demo(steps)
    page.add_report()
    assert page.page.locator(".foresight-map").is_visible()
    before, seen = page.history(), []
    page.press_run()
    for _ in range(3000):
        match = re.search(rf"evaluation (\d+) of ({steps})", page.figures)
        if match and (not seen or seen[-1] != match.groups()):
            seen.append(match.groups())
            if len(seen) == 8:
                page.page.screenshot(path=pictures / f"running.{page.renderer}.png")
        if match and int(match[1]) == steps:
            break
        page.page.wait_for_timeout(20)
    counts = [int(count) for count, _ in seen]
    assert counts == sorted(counts) and counts[-1] == steps and len(counts) > 8
    entry = page.wait_for_new(before)
    assert entry["status"]["status_str"] == "success"
    (record,) = [r for r in page.records() if r["prompt_id"] == entry["prompt_id"]]
    text = page.figures
    assert f"{record['reuse_ratio']:.0%}".replace("%", " %") + " left out" in text and record["reused"] > 0
    assert f"{record['estimated_speedup']:.2f}x (estimated)" in text
    assert f"{record['peak_bytes'] / 2**20:.1f} MiB held" in text
    shown = times(text)
    assert shown == {float(figures._seconds(record[name])[:-2].strip()) for name in ("seconds_full", "seconds_reuse")}
    history = next(output["text"][0] for output in entry["outputs"].values() if "text" in output)
    assert f"{record['reused']} of {record['total']} block calls ({record['reuse_ratio']:.0%})" in history
    assert shown <= times(history)  # 0.0460 there is 0.046 here
    for value in (f"{record['estimated_speedup']:.2f}x", re.search(r"[\d.]+ MiB", text)[0]):
        assert f" {value}\n" in history, value
    page.page.screenshot(path=pictures / f"done.{page.renderer}.png")
    read_cells(page, record)


def times(text: str) -> set[float]:
    """The numbers before s or ms in what the node or the report says."""
    return {float(value) for value in re.findall(r"([\d.]+) m?s\b", text)}


def read_cells(page, record) -> None:
    """Every cell as the keyboard reads it, against the record."""
    canvas = page.page.locator(".foresight-map canvas")
    canvas.focus()
    readout = page.page.locator(".foresight-readout")
    for index, evaluation in enumerate(record["evaluations"]):
        page.page.keyboard.press("ArrowRight")
        if index == 0:  # the first key sets the cursor down
            assert readout.inner_text() == "block 0, evaluation 0: computed (warmup)"
            continue
        text = readout.inner_text()
        assert text.startswith(f"block 0, evaluation {index}: ")
        assert ("reused" in text) == (evaluation["reused"][0] > 0)
    page.page.keyboard.press("ArrowUp")
    assert readout.inner_text().startswith(f"block 1, evaluation {len(record['evaluations']) - 1}")


WATCH_FIGURES = """() => {
    window.seenFigures = [];
    const see = () => window.seenFigures.push(document.querySelector(".foresight-figures")?.innerText ?? "");
    new MutationObserver(see).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""  # an evaluation may be over before a test that waits for its figures has read them


def test_a_forecast_says_its_plan_before_its_first_evaluation_and_what_became_of_it(page):
    steps = 20 if page.renderer == "classic" else 18
    page.demo(steps)
    page.set("ForesightApply", "method", "forecast")
    page.add_report()
    before = page.history()
    page.run(WATCH_FIGURES)
    page.press_run()
    entry = page.wait_for_new(before)
    (record,) = [r for r in page.records() if r["prompt_id"] == entry["prompt_id"]]
    plan = f"{record['planned']} of {steps} steps computed, {steps / record['planned']:.2f}x"
    (first,) = {text for text in page.run("() => window.seenFigures") if text.startswith(f"evaluation 0 of {steps} ")}
    assert first.endswith(f"\nplan: {plan}")
    computed = sum(not any(e["reused"]) for e in record["evaluations"])
    assert f"plan: {plan}; it became {computed}\n" in page.figures
    history = next(output["text"][0] for output in entry["outputs"].values() if "text" in output)
    assert f" {plan}\n" in history and f" {computed} of {steps} evaluations\n" in history


def test_a_preset_sets_the_threshold_by_pointer_and_by_keyboard(page):
    page.load(hosts.ROOT / "workflows" / "foresight_demo.json")
    buttons = page.page.locator(".foresight-presets button")
    assert buttons.all_inner_texts() == ["final", "default", "preview", "draft"]

    def threshold():
        prompt = page.run("async () => (await app.graphToPrompt()).output")
        return next(n["inputs"]["threshold"] for n in prompt.values() if n["class_type"] == "ForesightApply")

    def pressed():
        return [text for text, on in zip(buttons.all_inner_texts(), page.run(PRESSED), strict=True) if on == "true"]

    assert (threshold(), pressed()) == (0.5, ["default"])
    buttons.nth(3).click()
    assert (threshold(), pressed()) == (2, ["draft"])
    buttons.nth(0).focus()
    page.page.keyboard.press("Enter")
    assert (threshold(), pressed()) == (0.3, ["final"])
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Space")
    assert (threshold(), pressed()) == (1, ["preview"])
    page.run(
        """() => {
            const widgets = app.graph.nodes.find((n) => n.type === "ForesightApply").widgets;
            const threshold = widgets.find((w) => w.name === "threshold");
            threshold.value = 0.7;
            threshold.callback?.(0.7);  // as when a user types it
        }"""
    )
    assert (threshold(), pressed()) == (0.7, [])


def test_after_an_undo_the_views_are_those_of_the_nodes_that_are_there(page):
    """The frontend makes all nodes anew, and goes on showing what it has of those before."""
    steps = 9 if page.renderer == "classic" else 11
    page.load(hosts.ROOT / "workflows" / "foresight_demo.json")
    page.add_report()
    page.fit()
    page.run(NOTE_STATE)
    page.page.locator(".foresight-presets button").nth(3).click()
    page.run(NOTE_STATE)
    page.run("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.page.wait_for_timeout(1000)
    views = """() => app.graph.nodes.flatMap((n) =>
        (n.widgets ?? []).filter((w) => w.name === "foresight_view").map((w) => w.element.isConnected))"""
    assert page.run(views) and all(page.run(views))  # with the report or, where one undo took both changes, without
    buttons = page.page.locator(".foresight-presets button")
    assert page.run(PRESSED) == ["false", "true", "false", "false"]
    page.set("KSampler", "steps", steps)  # now only: the undo may take back whatever was done since the frontend looked
    page.set("KSampler", "seed", steps)
    before = page.history()
    page.press_run()
    page.wait_for_new(before)
    assert f"evaluation {steps} of {steps}" in page.figures
    buttons.nth(2).click()
    (threshold,) = page.run(
        """() => app.graph.nodes.filter((n) => n.type === "ForesightApply")
            .map((n) => n.widgets.find((w) => w.name === "threshold").value)"""
    )
    assert threshold == 1 and "of a run with threshold 0.5; the node says threshold 1 now" in page.figures


def test_presets_are_off_while_another_node_gives_the_threshold(page):
    page.load(hosts.ROOT / "workflows" / "foresight_demo.json")
    for linked in (True, False):
        page.run(
            """(linked) => {
                const ours = app.graph.nodes.find((n) => n.type === "ForesightApply");
                const slot = ours.inputs.findIndex((input) => input.widget?.name === "threshold");
                if (!linked) return ours.disconnectInput(slot);
                const number = LiteGraph.createNode("PrimitiveFloat");
                app.graph.add(number);
                number.connect(0, ours, slot);
            }""",
            linked,
        )
        disabled = "() => [...document.querySelectorAll('.foresight-presets button')].map((b) => b.disabled)"
        assert page.run(disabled) == [linked] * 4


def test_a_run_that_is_interrupted_says_how_far_it_came(page):
    page.demo(90, seed=15)
    page.set("KSampler", "cfg", 4)
    page.set("ForesightApply", "method", "forecast")
    page.press_run()
    page.page.wait_for_function("() => /evaluation ([5-9]|[1-9]\\d) of 90/.test(document.body.innerText)")
    page.run("() => fetch('/api/interrupt', { method: 'POST' })")
    page.page.wait_for_function("() => /· stopped/.test(document.body.innerText)")
    record = page.records()[-1]
    count = len(record["evaluations"])
    assert record["broken_off"] and record["done"] and 5 <= count < 90
    computed = sum(not any(e["reused"]) for e in record["evaluations"])
    assert f"evaluation {count} of 90" in page.figures
    assert f"it became {computed} of {count} evaluations until it was stopped" in page.figures


NOTE_STATE = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    (tracker.checkState ?? tracker.captureCanvasState).call(tracker);
}"""  # as the frontend does after a click or a key
PRESSED = "() => [...document.querySelectorAll('.foresight-presets button')].map((b) => b.getAttribute('aria-pressed'))"


FAKE = """(more) => {
    const record = JSON.parse(JSON.stringify(more.record));
    const evaluations = record.evaluations.slice(0, more.rows ?? record.evaluations.length);
    const detail = { ...record, first: 0, run: more.run, ...more.given, evaluations };
    const { api } = window.comfyAPI.api;
    api.dispatchEvent(new CustomEvent("foresight.run", { detail }));
}"""  # an event as the server sends it; a run between two is forgotten with the next


def test_a_long_record_on_a_small_node_is_cut_nowhere_and_lies_over_nothing(page):
    """Two samplers, validated, of another threshold, and the words of a cell."""
    page.demo(STEPS, seed=23)
    before = page.history()
    page.press_run()
    page.wait_for_new(before)
    record, long = page.records()[-1], "what was left out is off by a lot, and the sampler was started again " * 3
    for n, sampler in enumerate((record["sampler_id"], "another")):
        given = {"sampler_id": sampler, "prompt_id": "long", "uncorrected": long, "restarts": 6, "taken_back": 2}
        page.run(FAKE, {"record": record, "run": record["run"] + 0.25 * (n + 1), "given": given})
    canvas = page.page.locator(".foresight-map canvas")
    canvas.focus()
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("ArrowRight")
    boxes = page.run(
        """() => [...document.querySelectorAll(".foresight-map > *")].filter((e) => e.offsetHeight).map((e) => ({
            name: e.className || e.tagName, top: e.offsetTop, end: e.offsetTop + e.offsetHeight,
            whole: e.scrollHeight <= e.offsetHeight + 1,
        }))"""
    )
    assert [box["name"] for box in boxes[-3:]] == ["foresight-figures", "foresight-readout", "foresight-legend"]
    assert all(a["end"] <= b["top"] + 1 for a, b in zip(boxes, boxes[1:], strict=False)), boxes
    assert all(box["whole"] for box in boxes), boxes
    assert page.run(
        """() => {
            const map = document.querySelector(".foresight-map");
            return map.scrollHeight <= map.clientHeight || getComputedStyle(map).overflowY === "auto";
        }"""
    )
    canvas.blur()
    assert page.page.locator(".foresight-readout").inner_text() == ""


def test_a_run_that_a_new_server_does_not_know_is_shown_as_stopped(page):
    record = page.records()[-1]
    given = {"done": False, "prompt_id": "lost"}
    page.run(FAKE, {"record": record, "run": record["run"] + 0.75, "given": given, "rows": 3})
    assert "evaluation 3 of" in page.figures and "stopped" not in page.figures
    page.run("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
    page.page.wait_for_function("() => /evaluation 3 of .*· stopped/.test(document.body.innerText)")


def test_an_answer_that_comes_late_or_is_none_leaves_the_map_as_it_is(page):
    record = page.records()[-1]
    newer = {**record, "run": record["run"] + 0.85, "prompt_id": "late"}
    page.run(FAKE, {"record": record, "run": newer["run"], "given": {"prompt_id": "late"}})
    shown, late = page.figures, {**newer, "done": False, "reused": 0, "reuse_ratio": 0.0}
    assert record["reused"] and "evaluation" in shown
    answers = [
        lambda route: route.fulfill(body="<html>the page of a proxy</html>", content_type="text/html"),
        lambda route: route.fulfill(body=json.dumps([late]), content_type="application/json"),
        lambda route: route.fulfill(status=500, body="[]"),
        lambda route: route.abort(),
    ]
    for answer in answers:
        page.page.route("**/foresight/runs", answer)
        with page.page.expect_request("**/foresight/runs"):
            page.run("() => window.comfyAPI.api.api.dispatchEvent(new CustomEvent('reconnected'))")
        page.page.wait_for_timeout(300)
        page.page.unroute("**/foresight/runs")
        assert page.figures == shown
    page.errors = [error for error in page.errors if not error.startswith("Failed to load resource")]  # the browser's


def test_a_prompt_in_api_format_shows_its_own_runs(page):
    """The frontend gives all of them the same id."""
    prompt = json.loads((hosts.ROOT / "tools" / "foresight_demo.api.json").read_text())
    (sampler,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"]
    sampler |= {"steps": 4, "cfg": 1, "seed": 31 if page.renderer == "classic" else 32}
    load = "async ([prompt, name]) => { await app.loadApiJson(prompt, name); }"
    page.run(load, [prompt, "first"])
    before = page.history()
    page.press_run()
    page.wait_for_new(before)
    assert "evaluation 4 of 4" in page.figures
    page.page.reload(wait_until="domcontentloaded")
    page.wait()
    page.run(load, [{**prompt, "99": {"class_type": "ForesightDemoModel", "inputs": {}}}, "second"])
    page.page.wait_for_timeout(500)
    assert page.page.locator(".foresight-empty").count() == 1 and page.figures == ""


VIEWPORT = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"


def test_pointer_and_keys_over_our_views_are_the_graphs_where_they_have_no_use_for_them(page):
    page.demo()
    page.add_report()
    page.page.locator(".foresight-text").evaluate("(e) => { e.textContent = 'a line of the report'; }")
    for name in ("map", "text"):
        page.fit()
        box = page.page.locator(f".foresight-{name}").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.8
        scale, *offset = page.run(VIEWPORT)
        page.page.mouse.move(x, y)
        page.page.mouse.down(button="middle")
        page.page.mouse.move(x + 40, y + 30, steps=4)
        page.page.mouse.up(button="middle")
        page.page.wait_for_timeout(300)
        moved = page.run(VIEWPORT)
        assert moved[0] == scale and all(b > a + 10 for a, b in zip(offset, moved[1:], strict=True)), name
        page.page.mouse.wheel(0, 100)
        page.page.wait_for_timeout(300)
        assert page.run(VIEWPORT)[0] < scale, name
    page.fit()
    text = page.page.locator(".foresight-text")
    text.focus()
    selected = page.run("() => Object.keys(app.canvas.selected_nodes)")
    page.page.keyboard.press("Control+a")
    assert page.run("() => getSelection().toString()") == "a line of the report"
    assert page.run("() => Object.keys(app.canvas.selected_nodes)") == selected
    if page.renderer == "classic":  # Nodes 2.0 has rules of its own
        text.evaluate("(e) => { e.textContent = Array(200).fill('a line').join(String.fromCharCode(10)); }")
        box, before = text.bounding_box(), page.run(VIEWPORT)
        page.page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.page.mouse.wheel(0, 100)
        page.page.wait_for_timeout(300)
        assert text.evaluate("(e) => e.scrollTop") > 0 and page.run(VIEWPORT) == before


def test_the_text_of_a_report_in_a_subgraph_comes_back_with_its_tab(page):
    page.demo(5, seed=41 if page.renderer == "classic" else 42)
    page.add_report()
    page.run(
        """() => {
            const report = app.graph.nodes.find((n) => n.type === "ForesightReport");
            app.graph.convertToSubgraph(new Set([report]));
        }"""
    )
    page.page.wait_for_timeout(500)
    before = page.history()
    page.press_run()
    entry = page.wait_for_new(before)
    (told,) = [output["text"][0] for output in entry["outputs"].values() if "text" in output]
    page.run(NOTE_STATE)
    page.load(hosts.ROOT / "workflows" / "foresight_ab.json")
    page.run("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.page.wait_for_timeout(1500)
    page.run("() => { const n = app.graph.nodes.find((n) => n.subgraph); app.canvas.openSubgraph(n.subgraph, n); }")
    page.page.wait_for_timeout(1500)
    assert page.page.locator(".foresight-text").first.inner_text().strip() == told.strip()


def test_a_forecast_is_a_strip_that_arrow_keys_read(page, pictures):
    steps = 16 if page.renderer == "classic" else 17
    page.load(hosts.ROOT / "workflows" / "foresight_demo.json")
    page.set("KSampler", "steps", steps)
    page.set("ForesightApply", "validate", True)
    page.fit()
    before = page.history()
    page.press_run()
    entry = page.wait_for_new(before)
    (record,) = [r for r in page.records() if r["prompt_id"] == entry["prompt_id"]]
    assert record["counted"] == "outputs" and record["reused"] > 0
    page.page.wait_for_timeout(500)
    assert "(without validate)" in page.figures and "off by" in page.figures
    canvas = page.page.locator(".foresight-map canvas")
    assert canvas.get_attribute("aria-label").startswith(f"Strip of {steps} evaluations")
    canvas.focus()
    for index, evaluation in enumerate(record["evaluations"]):
        page.page.keyboard.press("ArrowRight")
        text = page.page.locator(".foresight-readout").inner_text()
        assert text.startswith(f"evaluation {index}: {'left out' if evaluation['reused'][0] else 'computed'}")
        assert ("real" in text) == (evaluation["missed"] is not None)
    page.page.screenshot(path=pictures / f"strip.{page.renderer}.png")


def test_the_map_is_in_no_file_and_on_no_global(page):
    page.demo()
    saved = page.run("() => app.graph.serialize()")
    (node,) = [n for n in saved["nodes"] if n["type"] == "ForesightApply"]
    assert node["widgets_values"] == ["paper", 2, 0, 0, 0, 1, "auto", 0, False] and "foresight_view" not in json.dumps(
        saved
    )
    prompt = page.run("async () => (await app.graphToPrompt()).output")
    (inputs,) = [n["inputs"] for n in prompt.values() if n["class_type"] == "ForesightApply"]
    assert len(inputs) == 10 and "foresight_view" not in inputs
    assert page.run("() => Object.keys(window).filter((key) => /foresight/i.test(key))") == []


OLDER = {  # widget values as older versions saved them, and as they are read now
    "forecast": ([3, 1.5, 2, 0.1, 0.9, "cpu", 2.5, "forecast"], ["forecast", 1.5, 3, 0, 0.1, 0.9, "cpu", 2.5, False]),
    "forecast, off": ([0, 0.5, 1, 0, 1, "auto", 0, "forecast"], ["forecast", 0.5, 0, 1, 0, 1, "auto", 0, False]),
    "paper": ([8, 0.5, 3, 0, 1, "auto", 0, "paper"], ["paper", 0.5, 8, 3, 0, 1, "auto", 0, False]),
    "before forecast": ([8, 0.5, 3, 0, 1, "auto", 0], ["paper", 0.5, 8, 3, 0, 1, "auto", 0, False]),
}


def test_a_workflow_with_the_older_order_of_widgets_is_read_right_and_that_is_said_once(page, tmp_path):
    today = json.loads((hosts.ROOT / "workflows" / "foresight_demo.json").read_text())
    (node,) = [n for n in today["nodes"] if n["type"] == "ForesightApply"]
    names = [entry["name"] for entry in node["inputs"][1:]]
    for name, (saved, expected) in OLDER.items():
        node["widgets_values"] = saved
        (tmp_path / "older.json").write_text(json.dumps(today))
        (inputs,) = [
            n["inputs"]
            for n in page.load(tmp_path / "older.json")["output"].values()
            if n["class_type"] == "ForesightApply"
        ]
        assert [inputs[key] for key in names] == expected, name
    said = page.page.get_by_text("saved with an older Foresight").all()
    assert sum(not part.evaluate("(e) => e.closest('.sr-only')") for part in said) == 1  # screen readers have a copy
    for values in (["paper", 2, 0, 0, 0, 1, "auto", 0, False], ["forecast", 0.5, 1, 3, 0, 1, "gpu", 1, True]):
        node["widgets_values"] = values if values[-1] else values[:-1]  # from before there was a validate
        (tmp_path / "today.json").write_text(json.dumps(today))
        loaded = page.load(tmp_path / "today.json")["output"]
        (inputs,) = [n["inputs"] for n in loaded.values() if n["class_type"] == "ForesightApply"]
        assert [inputs[key] for key in names] == values


def shows_runs_of_others_only_where_there_is_none_of_its_own(page, text):
    """Users of one server who have opened the same template have workflows of the same id; this page knows its own."""
    record, name = page.records()[-1], "window.comfyAPI.api.api.clientId"
    given, me = {"prompt_id": "theirs", "client_id": "another"}, page.run(f"() => {name}")
    assert record["client_id"] == me
    for who, shown in ((me, text), ("a third", None), (me, text)):
        page.run(f"(who) => {{ {name} = who; }}", who)
        page.run(FAKE, {"record": record, "run": record["run"] + 0.1, "given": given, "rows": 3})
        assert (page.figures == shown) if shown else ("evaluation 3 of" in page.figures), (who, page.figures)


def test_reload_cached_run_and_bypass(page):
    page.demo(seed=3)
    before = page.history()
    page.press_run()
    page.wait_for_new(before)
    text = page.figures
    assert f"evaluation {STEPS} of {STEPS}" in text
    page.press_run()  # everything is cached: the last result stands
    page.page.wait_for_timeout(1500)
    assert page.figures == text
    page.page.reload(wait_until="domcontentloaded")
    page.wait()
    page.page.wait_for_timeout(1000)
    if not page.page.locator(".foresight-map").count():  # this frontend does not bring unsaved workflows back
        page.demo(seed=3)
    page.page.wait_for_timeout(500)
    assert page.figures == text
    shows_runs_of_others_only_where_there_is_none_of_its_own(page, text)
    count = len(page.records())
    page.run("() => { app.graph.nodes.find((n) => n.type === 'ForesightApply').mode = 4; }")
    before = page.history()
    page.press_run()
    assert page.wait_for_new(before)["status"]["status_str"] == "success"
    assert len(page.records()) == count and page.figures == text


def test_a_reload_in_mid_run_goes_on_where_the_run_is(page):
    seed = 13 if page.renderer == "classic" else 14
    page.demo(50, seed)
    page.set("KSampler", "cfg", 4)  # so that it lasts longer than a reload
    before = page.history()
    page.press_run()
    page.page.wait_for_function("() => /evaluation ([3-9]|[1-9]\\d) of 50/.test(document.body.innerText)")
    page.page.reload(wait_until="domcontentloaded")
    page.wait()
    if not page.page.locator(".foresight-map").count():  # this frontend does not bring unsaved workflows back
        page.demo(50, seed)
    page.wait_for_new(before)
    page.page.wait_for_function("() => /evaluation 50 of 50/.test(document.body.innerText)", timeout=10_000)
    label = page.page.locator(".foresight-map canvas").get_attribute("aria-label")
    assert label.startswith("Map of 12 blocks by 50 evaluations")
    # events that come before the new page has loaded the pack
    early = "Unhandled message", "Unknown message type"
    page.errors = [error for error in page.errors if not error.startswith(early)]


def test_a_second_run_replaces_the_first_and_two_samplers_have_tabs(page):
    page.load(hosts.ROOT / "workflows" / "foresight_ab.json")
    page.set("KSampler", "steps", STEPS)
    page.run(  # both samplers on the model with Foresight, with two seeds
        """(seed) => {
            const node = (id) => app.graph.nodes.find((n) => String(n.id) === String(id));
            node(13).connect(0, node(6), 0);
            node(6).connect(0, node(16), 0);
            node(14).connect(0, node(17), 0);
            [6, 14].forEach((id, i) => { node(id).widgets.find((w) => w.name === "seed").value = seed + i; });
            app.graph.remove(node(15));
        }""",
        100 if page.renderer == "classic" else 200,
    )
    page.fit()
    before = page.history()
    page.press_run()
    page.wait_for_new(before)
    tabs = page.page.locator(".foresight-tabs button")
    assert set(tabs.all_inner_texts()) == {"KSampler (plain)", "KSampler (Foresight)"}
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    tabs.nth(0).click()
    assert tabs.nth(0).get_attribute("aria-selected") == "true"
    page.page.keyboard.press("Tab")  # from here on without a pointer
    page.page.keyboard.press("Enter")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    page.page.keyboard.press("Tab")
    assert page.run("() => document.activeElement.matches('.foresight-map canvas')")
    page.page.keyboard.press("ArrowRight")
    assert page.page.locator(".foresight-readout").inner_text().startswith("evaluation 0: computed (warmup)")


def test_the_ab_workflow_shows_the_measured_speed_up(page, pictures):
    page.load(hosts.ROOT / "workflows" / "foresight_ab.json")
    page.set("KSampler", "steps", STEPS)
    page.set("KSampler", "seed", 5 if page.renderer == "classic" else 6)
    page.fit()
    before = page.history()
    page.press_run()
    entry = page.wait_for_new(before)
    assert entry["status"]["status_str"] == "success"
    texts = [text for output in entry["outputs"].values() for text in output.get("text", [])]
    shown = page.page.locator(".foresight-text").all_inner_texts()
    assert sorted(texts) == sorted(shown) and len(texts) == 3
    (line,) = [text for text in texts if text.startswith("plain ")]
    assert re.fullmatch(r"plain [\d.]+ s, Foresight [\d.]+ s: [\d.]+x measured", line)
    assert any(re.match(r"PSNR [\d.]+ dB over 8 frames", text) for text in texts)
    saved = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    assert [file["filename"][-5:] for file in saved if file["type"] == "output"] == [".webp"]  # one picture to post
    page.page.wait_for_timeout(1500)
    page.page.screenshot(path=pictures / f"ab.{page.renderer}.png")


def test_both_themes(page, pictures):
    """As a user changes it: while the page is open, with a finished run on the map."""
    page.demo(seed=9)
    before = page.history()
    page.press_run()
    page.wait_for_new(before)
    colours = []
    for theme in ("dark", "light", "dark"):  # the last one for the tests behind
        page.theme(theme)
        assert f"evaluation {STEPS} of {STEPS}" in page.figures and not page.errors
        page.page.screenshot(path=pictures / f"{theme}.{page.renderer}.png")
        colours.append(
            page.run(
                "() => { const s = getComputedStyle(document.querySelector('.foresight-map'));"
                " return [s.getPropertyValue('--foresight-computed'), s.color]; }"
            )
        )
    assert [computed for computed, _ in colours] == ["#555b65", "#d6d6ce", "#555b65"] and colours[0][1] != colours[1][1]
