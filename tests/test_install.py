"""What `pip install .` brings, and the README's example with it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the library as pip installs it."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("pip is not installed here")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("foresight", "pyproject.toml", "LICENSE", "README.md"):  # building leaves files beside them
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, source]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode and "setuptools" in result.stderr:
        pytest.skip("setuptools, which builds it, can't be had here")
    assert result.returncode == 0, result.stderr
    return target


def test_pip_installs_the_library_and_nothing_else(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} <= {"foresight", "bin"}
    own = {path.relative_to(ROOT) for path in (ROOT / "foresight").rglob("*") if path.suffix in (".py", ".json")}
    assert own and all((installed / path).is_file() for path in own)


def test_the_readmes_example_runs_with_what_pip_installed(installed, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed here")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    shutil.copytree(ROOT / "models", tmp_path / "models")  # a clone's folder, without the library
    where = "import foresight; print(foresight.__file__)"
    env = {"PYTHONPATH": str(installed), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", f"{example}\n{where}"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    summary, file = result.stdout.splitlines()[-2:]
    assert summary.startswith("left out ") and "inactive" not in summary
    assert file.startswith(str(installed))
