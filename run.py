"""The two commands: `python run.py demo` and `python run.py test`. Needs Python >= 3.10 and nothing else.

Both work in an environment of their own, kept in the user's cache folder under a name made from what it holds, so that
it is installed once. ComfyUI is used where it is found: COMFYUI_PATH, the folder above `custom_nodes`, or
~/comfy/ComfyUI.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = [
    "torch==2.11.0",
    "torchvision==0.26.0",
    "torchaudio==2.11.0",
    "diffusers==0.42.1",
    "transformers>=4.50.3",
    "ftfy",
    "safetensors>=0.4.2",
    "numpy>=1.25.0",
    "scipy",
    "Pillow",
    "av>=16.0.0",
    "matplotlib",
    "scikit-image",
    "tqdm",
    "pytest==9.*",
    "pytest-xdist==3.*",
    "ruff==0.14.*",
    "jsonschema",
    "playwright",  # drives a Chromium that is there; brings none
    "comfy-cli",  # packs and checks the archive for the registry
    "comfy-test",  # checks a pack as a server and a browser load it
    "cache-dit==1.5.3",  # for the benchmarks
]

NEWEST_FRONTEND = "comfyui-frontend-package==1.58.1"  # users have it before ComfyUI pins it; for the browser's tests

# files run side by side, a file's tests in one process; one more than there are cores, since a browser's tests wait
TEST_OPTIONS = ["-n", str(min(4, (os.cpu_count() or 1) + 2)), "--dist", "loadfile", "--no-loadscope-reorder"]


def comfyui_path() -> Path | None:
    """Where ComfyUI is, or None."""
    above = ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else None
    for place in (os.environ.get("COMFYUI_PATH"), above, "~/comfy/ComfyUI"):
        if place and (Path(place).expanduser() / "main.py").is_file():
            return Path(place).expanduser()
    return None


def cache_folder() -> Path:
    """The user's cache folder for this pack."""
    if os.environ.get("FORESIGHT_CACHE"):
        return Path(os.environ["FORESIGHT_CACHE"])
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or "~/.cache").expanduser() / "comfyui-foresight"


def environment(comfyui: Path | None) -> Path:
    """The interpreter of an environment with everything in it; made on first use, found again after that."""
    wanted = list(REQUIREMENTS)
    if comfyui is not None:
        lines = (line.split("#")[0].strip() for line in (comfyui / "requirements.txt").read_text().splitlines())
        pinned = {requirement.split("=")[0] for requirement in REQUIREMENTS[:3]}
        wanted += [line for line in lines if line and line not in pinned]
    version = ".".join(platform.python_version_tuple()[:2])
    key = hashlib.sha256("\n".join([version, platform.machine(), *wanted]).encode()).hexdigest()[:12]
    folder = cache_folder() / f"env-{key}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").is_file():
        print(f"Setting up {folder} (once; torch and its libraries are a few GB) ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
        (folder / "complete").write_text("\n".join(wanted) + "\n")
    if comfyui is not None and not (folder / "newest-frontend").is_dir():
        place = ["--no-deps", "--target", folder / "newest-frontend"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *place, NEWEST_FRONTEND], check=False)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("demo", "test"))
    args, rest = parser.parse_known_args()
    if sys.version_info < (3, 10):
        parser.error(f"this is Python {platform.python_version()}; 3.10 or newer is needed")
    comfyui = comfyui_path()
    env = dict(os.environ)
    if comfyui is None:
        env.pop("COMFYUI_PATH", None)
        print("ComfyUI not found (COMFYUI_PATH, ~/comfy/ComfyUI): going on without it.", flush=True)
    else:
        env["COMFYUI_PATH"] = str(comfyui)
        print(f"ComfyUI: {comfyui}", flush=True)
    try:
        python = environment(comfyui)
    except subprocess.CalledProcessError as error:
        print(f"Setting up the environment failed: {error}", file=sys.stderr)
        return 1
    module = ["tools.demo.run"]
    if args.command == "test":
        module = ["pytest", *TEST_OPTIONS]
        env.setdefault("OMP_NUM_THREADS", "1")  # threads of one process, so that the processes do not fight for cores
    return subprocess.run([python, "-m", *module, *rest], cwd=ROOT, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
