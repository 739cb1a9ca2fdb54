"""One identity: no file of ours is loaded under two names in one process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIND = """
import sys
def twice(root):
    seen = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(root + "/") and "/tests/" not in file and file != root + "/__init__.py":
            seen.setdefault(file, {})[id(module)] = name
    return {file: list(names.values()) for file, names in seen.items() if len(names) > 1}
"""


def find(root: str) -> dict:
    """Files of ours that are in this process as more than one module."""
    scope = {}
    exec(FIND, scope)  # noqa: S102
    return scope["twice"](root)


def test_the_tests_load_every_file_once():
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    import foresight.hosts.comfyui
    import pack.nodes
    from bench import ablation, gpu
    from tools.demo import run

    assert pack.nodes.live is foresight.hosts.comfyui.live and ablation and gpu and run
    assert not find(str(ROOT))


def test_the_search_finds_a_file_that_is_loaded_twice(monkeypatch):
    import importlib.util

    import foresight.engine.config as config

    spec = importlib.util.spec_from_file_location("another_name", config.__file__)
    monkeypatch.setitem(sys.modules, "another_name", importlib.util.module_from_spec(spec))
    assert list(find(str(ROOT))) == [config.__file__]


def test_comfyui_loads_every_file_once_under_its_own_name_for_the_pack():
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    import os

    code = (
        FIND
        + f"""
import asyncio
sys.argv = sys.argv[:1] + ["--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import nodes
asyncio.run(nodes.load_custom_node({str(ROOT)!r}))
node = nodes.NODE_CLASS_MAPPINGS["ForesightDemoModel"].execute().args[0]
nodes.NODE_CLASS_MAPPINGS["ForesightApply"].PREPARE_CLASS_CLONE({{"hidden_inputs": {{}}}}).execute(model=node)
loaded = [n for n, m in sys.modules.items() if (getattr(m, "__file__", None) or "").startswith({str(ROOT)!r})]
assert len(loaded) > 30 and "foresight" not in sys.modules, loaded
assert not twice({str(ROOT)!r}), twice({str(ROOT)!r})
"""
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=os.environ["COMFYUI_PATH"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
