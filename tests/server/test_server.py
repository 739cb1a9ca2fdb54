"""The real thing: `main.py --cpu` with the pack in it, over HTTP."""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

from pack.nodes import ForesightExtension
from tools import hosts, stand_ins

STEPS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    stand_ins.put(base)
    with hosts.ComfyUI(Path(os.environ["COMFYUI_PATH"]), base / "server.log", base) as host:
        yield host


def test_the_nodes_are_there(server):
    info = json.loads(server.get("/object_info"))
    names = {name for name, node in info.items() if node["python_module"].endswith("ComfyUI-Foresight")}
    nodes = asyncio.run(ForesightExtension().get_node_list())
    assert names == {node.GET_SCHEMA().node_id for node in nodes}


def test_the_workflows_use_nodes_that_are_there(server):
    known = set(json.loads(server.get("/object_info"))) | {"MarkdownNote", "Note", "Reroute"}  # the browser has these
    for path in (hosts.ROOT / "workflows").glob("*.json"):
        assert {node["type"] for node in json.loads(path.read_text())["nodes"]} <= known, path


def test_the_workflows_are_in_the_template_browser(server):
    found = json.loads(server.get("/workflow_templates"))["ComfyUI-Foresight"]
    assert (
        set(found) == {path.stem for path in (hosts.ROOT / "workflows").glob("*.json")} >= {"foresight_demo", "latte"}
    )


def test_the_demo_workflow_gives_the_video(server):
    import av

    prompt = json.loads(hosts.API_PROMPT.read_text())
    next(n for n in prompt.values() if n["class_type"] == "KSampler")["inputs"]["steps"] = STEPS
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success"
    (saved,) = [file for output in entry["outputs"].values() for file in output["images"]]
    assert saved["filename"].endswith(".mp4")
    data = server.get("/view?" + "&".join(f"{k}={saved[k]}" for k in ("filename", "subfolder", "type")))
    frames = [frame.to_ndarray(format="rgb24") for frame in av.open(io.BytesIO(data)).decode(video=0)]
    assert len(frames) == 8 and frames[0].shape == (256, 256, 3) and frames[0].std() > 5
    (run,) = [r for r in json.loads(server.get("/foresight/runs")) if r["prompt_id"] == entry["prompt_id"]]
    assert (run["node_id"], run["sampler_id"], len(run["evaluations"])) == ("2", "6", STEPS)
    assert (run["total"], run["counted"]) == (STEPS, "outputs") and run["seconds_full"] > 0


def prompt_of(path: Path, steps: int) -> dict:
    """A workflow of the pack in the server's format, with so many steps."""
    workflow = json.loads(path.read_text())
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in (node for node in workflow["nodes"] if node["type"] != "MarkdownNote"):
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        inputs = {**(node.get("widgets_values_named") or {}), **linked}
        inputs |= {"steps": steps} if "steps" in inputs else {}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def test_the_ab_workflow_ends_with_one_picture_of_both_videos(server):
    from PIL import Image

    entry = server.run(prompt_of(hosts.ROOT / "workflows" / "foresight_ab.json", STEPS))
    files = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    (saved,) = [file for file in files if file["type"] == "output"]
    assert saved["filename"] == "ab_00001_.webp" and saved["subfolder"] == "foresight"
    data = server.get("/view?" + "&".join(f"{k}={saved[k]}" for k in ("filename", "subfolder", "type")))
    image = Image.open(io.BytesIO(data))
    assert image.n_frames == 8 and image.width == 1024
    left, right = (image.convert("RGB").crop((x, 60, x + 480, 500)).getcolors(1 << 20) for x in (19, 524))
    assert len(left) > 50 and len(right) > 50  # a video on either side


def test_plain_and_off_are_the_same_video_and_reuse_is_another(server):
    plain = server.generate("blue ring moving up", 5, None, STEPS)
    off = server.generate("blue ring moving up", 5, {"threshold": 0.0}, STEPS)
    fast = server.generate("blue ring moving up", 5, {"threshold": 2.0}, STEPS)
    paper = server.generate("blue ring moving up", 5, {"threshold": 2.0, "method": "paper"}, STEPS)
    assert (plain.frames == off.frames).all() and plain.stats is None and off.stats is None
    assert fast.stats["block_speedup"] > paper.stats["block_speedup"] > 1
    assert paper.stats["total"] == STEPS * 12 * 2  # blocks and conds
    assert fast.frames.shape == plain.frames.shape == (8, 32, 32, 3)


def test_the_log_has_one_line_per_run_and_no_error(server):
    server.generate("red box moving left", 3, {}, STEPS)
    lines = server.log.read_text().splitlines()
    runs = len(json.loads(server.get("/foresight/runs")))
    said = [line for line in lines if re.search("Foresight (left out|inactive: .* evaluations computed)", line)]
    assert len(said) == runs
    assert not [line for line in lines if re.search("error|exception|traceback|import failed", line, re.IGNORECASE)]


def test_comfy_test_passes_its_levels_syntax_registration_and_javascript(server):
    program = Path(sys.executable).with_name("comfy-test")
    if not program.is_file():
        pytest.skip("comfy-test is not installed here")
    base = server.log.parent
    pack = base / "custom_nodes" / "ComfyUI-Foresight"
    (pack / "comfy-test.toml").write_text('[test]\nlevels = ["syntax", "registration", "javascript"]\n')
    result = subprocess.run(
        [program, "run", "--server-url", server.url],
        cwd=pack,
        env={**os.environ, "HOME": str(base), "COMFY_TEST_LOGS_DIR": str(base)},  # where it finds server.log
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for level in ("SYNTAX", "REGISTRATION", "JAVASCRIPT"):
        assert f"[{level}] PASSED" in result.stdout
    assert "log: unavailable" not in result.stdout and "0 error(s), 0 warning(s)" in result.stdout


# From here on the log has ComfyUI's own error lines.


def test_an_unknown_word_is_refused_with_the_vocabulary(server):
    with pytest.raises(RuntimeError, match="does not know the word 'purple'; it knows: red, yellow"):
        server.generate("purple ball", 1, None, STEPS)


def test_contradictory_settings_are_refused(server):
    with pytest.raises(RuntimeError, match="start_percent=0.9: must be below end_percent=0.5"):
        server.generate("red ball", 1, {"start_percent": 0.9, "end_percent": 0.5}, STEPS)
