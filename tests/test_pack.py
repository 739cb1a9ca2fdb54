"""The pack as a whole: layers, what importing does, what ships."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOSTS = {"comfy", "comfy_api", "comfy_execution", "diffusers", "server", "folder_paths"}
PACK = {"nodes", "models", "tools", "bench", "tests", "support"}
FORBIDDEN = {  # folder -> what its modules must not import
    "foresight/engine": {*HOSTS, *PACK, "foresight.hosts", "foresight.report"},
    "foresight/report": {*HOSTS, *PACK, "foresight.engine", "foresight.hosts"},
    "foresight/hosts": {*PACK, "folder_paths", "comfy_api", "foresight.report"},
    "foresight/hosts/comfyui": {"diffusers", "foresight.hosts.diffusers"},
    "foresight/hosts/diffusers": {"comfy", "server", "foresight.hosts.comfyui"},
    "models": {"nodes", "tools", "bench", "tests", "support", "foresight", "folder_paths", "comfy_api"},
    "nodes": {"tools", "bench", "tests", "support"},
}


PRODUCT = ("foresight", "nodes", "models", "tools")  # folders whose files and functions have to stay short


def imported(path: Path) -> set[str]:
    """Full names that a module imports, and those of what they belong to."""
    package, names = path.relative_to(ROOT).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (*package[: len(package) - node.level + 1],) if node.level else ()
            base = ".".join((*base, *(node.module or "").split("."))).strip(".")
            names |= {f"{base}.{alias.name}".strip(".") for alias in node.names}
    return {name.rsplit(".", n)[0] for name in names for n in range(name.count(".") + 1)}


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules of ours that a module names in its imports, without the packages around them."""
    names = imported(path)
    return {name for name in names if not any(other.startswith(f"{name}.") and module_of(other) for other in names)}


def module_of(name: str) -> bool:
    """Whether a full name is that of a module of ours."""
    path = ROOT / name.replace(".", "/")
    return path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_layers_look_down_only(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert not imported(path) & FORBIDDEN[folder], path


def test_the_layers_test_sees_relative_and_absolute_imports():
    host = ROOT / "foresight" / "hosts" / "comfyui" / "__init__.py"
    assert {"foresight.engine", "foresight.hosts.blocks", "comfy", "comfy.model_patcher"} <= imported(host)


def test_no_module_of_ours_imports_itself_through_others():
    """No circle: what a module imports, and what that imports, never leads back to it."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*.py")
    }
    direct = {}
    for name, path in files.items():
        # a package that only gathers its modules for those outside is no way back for these
        used = {found for found in imported_modules(path) if found in files and found != name}
        direct[name] = {found for found in used if not name.startswith(f"{found}.")}
    for start in direct:
        reached, waiting = set(), [*direct[start]]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += direct[name]
        assert start not in reached, start
    assert "foresight.engine.schedule" in direct["foresight.engine.prefix.policy"]


def test_nothing_asks_which_method_it_is():
    asks = re.compile(r"_forecaster|method ==|config\.method")
    for folder in ("foresight", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not asks.search(path.read_text()), path


def test_only_live_py_touches_the_server():
    paths = [path for folder in ("foresight", "nodes", "models") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in paths if "server" in imported(path)]
    assert {path.name for path in paths if "PromptServer" in path.read_text()} == {"live.py"}


def too_long(path: Path) -> list[str]:
    """What a file has over the limits: itself over 300 lines, functions over 40."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    found = [f"{name}: {len(text.splitlines())} lines"] if len(text.splitlines()) > 300 else []
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 40:
            found.append(f"{name}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    return found


def test_files_and_functions_keep_to_the_limits():
    files = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")] + list((ROOT / "js").rglob("*.js"))
    assert len(files) > 40 and not [words for path in files for words in too_long(path)]


def test_importing_the_engine_brings_no_host_and_does_not_touch_the_gpu():
    code = (
        "import sys, foresight, foresight.hosts.blocks, torch; "
        "assert not {'comfy', 'diffusers', 'transformers', 'torch._dynamo'} & set(sys.modules); "
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


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """What `comfy node pack` would send to the registry: its files with their contents."""
    comfy = Path(sys.executable).with_name("comfy")
    if not comfy.is_file():
        pytest.skip("comfy-cli is not installed here")
    copy = tmp_path_factory.mktemp("pack")
    git = ["git", "-c", "safe.directory=*"]
    listed = subprocess.run([*git, "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for command in (["git", "init", "-q"], ["git", "add", "-A"]):
        subprocess.run(command, cwd=copy, check=True)
    env = {**os.environ, "DO_NOT_TRACK": "1", "HOME": str(tmp_path_factory.mktemp("home"))}
    for command in ("validate", "pack"):
        result = subprocess.run(
            [comfy, "--skip-prompt", "--no-json", "node", command], cwd=copy, env=env, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "warning" not in result.stdout.lower(), result.stdout
    with zipfile.ZipFile(copy / "node.zip") as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_the_archive_has_what_users_need_and_nothing_else(archive):
    folders = {name.split("/")[0] for name in archive if "/" in name}
    assert folders == {"foresight", "js", "locales", "models", "nodes", "workflows"}
    loose = {name for name in archive if "/" not in name and not name.startswith(".")}
    assert loose == {"__init__.py", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "requirements.txt"}
    assert {"js/foresight.js", "js/foresight.css", "js/docs/ForesightApply.md"} <= set(archive)
    assert "foresight/report/schema.json" in archive
    assert {"models/demo/foresight_demo_wan.safetensors", "workflows/foresight_demo.jpg"} <= set(archive)
    assert sum(map(len, archive.values())) < 16_000_000


def test_the_archive_runs_no_program_and_opens_no_connection(archive):
    banned = {"subprocess", "socket", "urllib", "requests", "http", "pickle", "ctypes", "importlib", "httpx"}
    for name, data in archive.items():
        if not name.endswith(".py"):
            continue
        data.decode().encode("cp1252")  # what Windows may read a file as
        tree = ast.parse(data)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & banned, name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] not in banned, name
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), name
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in (("os", "system"), ("os", "popen")), name
    scripts = {name: data.decode() for name, data in archive.items() if name.endswith(".js")}
    assert {"js/foresight.js", "js/map.js", "js/runs.js"} <= set(scripts)
    for name, script in scripts.items():
        assert "http" not in script and "eval(" not in script and "fetch(" not in script.replace("fetchApi(", ""), name


def test_the_archive_is_a_pack_that_loads(archive, tmp_path):
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    for name, data in archive.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_bytes(data)
    code = (
        "import asyncio, sys; sys.argv = sys.argv[:1] + ['--cpu']; import comfy.options; "
        "comfy.options.enable_args_parsing(); import nodes; "
        f"ok = asyncio.run(nodes.load_custom_node({str(tmp_path / 'pack')!r})); "
        "print(ok, sum(name.startswith('Foresight') for name in nodes.NODE_CLASS_MAPPINGS))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=os.environ["COMFYUI_PATH"], capture_output=True, text=True
    )
    assert result.stdout.split()[-2:] == ["True", "21"], result.stdout + result.stderr


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
        elif "--target" in command:
            command[command.index("--target") + 1].mkdir()

    first = run.environment(None)
    assert len(commands) == 2 and run.environment(None) == first and len(commands) == 2
    comfyui = tmp_path / "ComfyUI"
    comfyui.mkdir()
    (comfyui / "requirements.txt").write_text("torch\ntorchsde\n# a comment\naiohttp>=3\n")
    second = run.environment(comfyui)
    *_, libraries, page = commands
    assert second != first and "torchsde" in libraries and "torch" not in libraries  # torch stays the pinned one
    assert page[-1] == run.NEWEST_FRONTEND and run.environment(comfyui) == second and commands[-1] is page
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
