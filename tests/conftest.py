"""Make the library, the models and the nodes importable, each under one name, beside a ComfyUI where one is installed.

`foresight`, `models`, `tools` and `bench` are what they are called when the pack's folder is on the path. Its nodes can
only be loaded as ComfyUI does it, as part of a package whose name ComfyUI makes; here that package is called `pack`.
What the nodes import relatively from it is the library of the tests, so that no file is loaded twice.
"""

import gc
import importlib
import importlib.util
import os
import pkgutil
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _package(name: str) -> None:
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / "__init__.py")
    module.__path__ = [str(ROOT)]
    sys.modules[name] = module


for _name in ("__init__", ROOT.name, "pack"):  # the two names that pytest may use for the root, and ours
    _package(_name)


_spec = importlib.util.spec_from_file_location("foresight_run", ROOT / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


def _comfyui() -> None:
    """Make ComfyUI importable, on the processor where there is no GPU, before anything imports it."""
    comfyui = run.comfyui_path()
    # torchsde stands for ComfyUI's own requirements: without them it is there but cannot be imported
    if comfyui is None or importlib.util.find_spec("torchsde") is None:
        os.environ.pop("COMFYUI_PATH", None)
        return
    os.environ["COMFYUI_PATH"] = str(comfyui)  # for the tests that start a server
    sys.path.insert(0, str(comfyui))
    import torch
    from comfy.cli_args import args

    args.cpu = args.cpu or not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True  # as on a GPU; what ComfyUI takes on a processor is slower
    import comfy.samplers  # noqa: F401  (before any test: it needs `args` as set above)


def _one_name(name: str) -> None:
    """`pack.<name>` and everything below it is `<name>`; what needs a host that is not installed here is left out."""
    package = importlib.import_module(name)
    sys.modules[f"pack.{name}"] = package
    for found in pkgutil.iter_modules(package.__path__, f"{name}."):
        try:
            sys.modules[f"pack.{found.name}"] = importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] not in ("comfy", "comfy_api", "diffusers"):
                raise
            continue
        if found.ispkg:
            _one_name(found.name)


# pytest-xdist's first process hands all tests to others, which wait for it to begin: there is nothing to import in it
_named = any(Path(argument).exists() for argument in sys.argv[1:])  # by a path, whose conftest is imported at once
if _named or "-n" not in sys.argv or "PYTEST_XDIST_WORKER" in os.environ:
    _comfyui()
    for _name in ("foresight", "models"):
        _one_name(_name)


SLOWEST = "test_browser.py", "test_samplers.py", "test_compile.py"  # minutes each; begun last, they would end alone


def pytest_collection_modifyitems(items: list) -> None:
    """Begin with the files that take longest, so that the processes of pytest-xdist end together."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


def pytest_collection_finish() -> None:
    """What is imported by now stays: a search for garbage, of which tests ask many, need not look at all of it."""
    gc.collect()
    gc.freeze()
