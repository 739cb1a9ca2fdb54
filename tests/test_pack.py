"""The pack as a whole: layers, what importing does, what ships."""

import ast
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {  # folder -> what its modules must not import
    "foresight": {"comfy", "comfy_api", "diffusers", "nodes", "adapters", "demo", "server", "folder_paths"},
    "adapters": {"nodes", "demo", "folder_paths", "comfy_api"},
    "demo": {"nodes", "adapters", "foresight", "comfy"},
    "models": {"nodes", "adapters", "foresight", "demo", "folder_paths", "comfy_api"},
    "report": {"comfy", "comfy_api", "diffusers", "nodes", "adapters", "demo", "foresight", "server", "folder_paths"},
    "nodes": {"bench"},
}


def imported(path: Path) -> set[str]:
    """Top-level names that a module imports; a relative import of the pack counts as the folder it names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 or node.level == 2:
                names |= {(node.module or "").split(".")[0]} | (
                    {alias.name for alias in node.names} if not node.module else set()
                )
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_layers_look_down_only(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert not imported(path) & FORBIDDEN[folder], path


def test_only_live_py_touches_the_server():
    users = {path.name for folder in FORBIDDEN for path in (ROOT / folder).rglob("*.py") if "server" in imported(path)}
    assert users == {"live.py"}


def test_importing_the_engine_brings_no_host_and_does_not_touch_the_gpu():
    code = (
        "import sys, foresight, torch; "
        "assert not {'comfy', 'diffusers', 'transformers'} & set(sys.modules); "
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_root_module_loads_without_comfyui():
    spec = importlib.util.spec_from_file_location(
        "pack_alone", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.WEB_DIRECTORY == "./js" and (ROOT / "js").is_dir() and callable(module.comfy_entrypoint)


@pytest.mark.parametrize("version, lines", [("0.3.64", 1), ("0.10.9", 1), ("0.11.0", 0), ("0.33.0", 0), ("1.0", 0)])
def test_a_comfyui_that_is_too_old_is_told_so(version, lines, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "comfyui_version", types.SimpleNamespace(__version__=version))
    test_the_root_module_loads_without_comfyui()
    assert len(caplog.records) == lines
    assert not lines or f"needs ComfyUI 0.11 or newer, this is {version}: update ComfyUI" in caplog.text


def test_ruff_is_clean():
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed here")
    result = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def load_run():
    spec = importlib.util.spec_from_file_location("run_commands", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comfyui_is_found_where_people_have_it(tmp_path, monkeypatch):
    run = load_run()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert run.comfyui_path() is None
    (tmp_path / "comfy" / "ComfyUI").mkdir(parents=True)
    assert run.comfyui_path() is None  # a folder alone is not ComfyUI
    (tmp_path / "comfy" / "ComfyUI" / "main.py").touch()
    assert run.comfyui_path() == tmp_path / "comfy" / "ComfyUI"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "other"))
    assert run.comfyui_path() == tmp_path / "other"


def test_the_environment_is_made_once_and_again_when_its_contents_change(tmp_path, monkeypatch):
    run = load_run()
    monkeypatch.setenv("FORESIGHT_CACHE", str(tmp_path / "cache"))
    commands = []
    monkeypatch.setattr(run.subprocess, "run", lambda command, **_: (commands.append(command), _make(command))[0])

    def _make(command):
        if "venv" in command:
            command[-1].mkdir(parents=True)

    first = run.environment(None)
    assert len(commands) == 2 and run.environment(None) == first and len(commands) == 2
    comfyui = tmp_path / "ComfyUI"
    comfyui.mkdir()
    (comfyui / "requirements.txt").write_text("torch\ntorchsde\n# a comment\naiohttp>=3\n")
    second = run.environment(comfyui)
    assert second != first and "torchsde" in commands[-1] and "torch" not in commands[-1]  # torch stays the pinned one
    (comfyui / "requirements.txt").write_text("torchsde\naiohttp>=4\n")
    assert run.environment(comfyui) != second


def test_an_interrupted_set_up_is_done_again(tmp_path, monkeypatch):
    run = load_run()
    monkeypatch.setenv("FORESIGHT_CACHE", str(tmp_path))
    tries = []

    def fail_first(command, **_):
        if "venv" in command:
            command[-1].mkdir(parents=True)
        elif not tries:
            tries.append(1)
            raise KeyboardInterrupt

    monkeypatch.setattr(run.subprocess, "run", fail_first)
    with pytest.raises(KeyboardInterrupt):
        run.environment(None)
    assert run.environment(None).parents[1].joinpath("complete").is_file()
