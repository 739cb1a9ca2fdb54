"""Make the pack importable as `foresight_pack`, and ComfyUI importable where it is installed.

The pack's root has an `__init__.py` that only ComfyUI can load, and a folder `nodes/` that must not shadow ComfyUI's
`nodes.py`.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _package(name: str) -> None:
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / "__init__.py")
    module.__path__ = [str(ROOT)]
    sys.modules[name] = module


for _name in ("__init__", ROOT.name, "foresight_pack"):  # the two names that pytest may use for the root, and ours
    _package(_name)


_spec = importlib.util.spec_from_file_location("foresight_run", ROOT / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)

_comfyui = run.comfyui_path()
# torchsde stands for ComfyUI's own requirements: without them it is there but cannot be imported
if _comfyui is None or importlib.util.find_spec("torchsde") is None:
    os.environ.pop("COMFYUI_PATH", None)
else:
    os.environ["COMFYUI_PATH"] = str(_comfyui)  # for the tests that start a server
    sys.path.insert(0, str(_comfyui))
    import torch
    from comfy.cli_args import args

    args.cpu = args.cpu or not torch.cuda.is_available()
    import comfy.samplers  # noqa: F401  (before any test: it needs `args` as set above)
