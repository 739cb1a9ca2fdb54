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


def comfyui_path() -> Path | None:
    """COMFYUI_PATH, the folder above `custom_nodes`, or comfy-cli's default; None when none of them holds ComfyUI."""
    places = [
        os.environ.get("COMFYUI_PATH"),
        ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else None,
        "~/comfy/ComfyUI",
    ]
    for place in places:
        if place and (Path(place).expanduser() / "main.py").is_file():
            return Path(place).expanduser()
    return None


COMFYUI = comfyui_path()
if (
    COMFYUI is not None and importlib.util.find_spec("torchsde") is not None
):  # torchsde: ComfyUI's own requirements are there
    sys.path.insert(0, str(COMFYUI))
    import torch
    from comfy.cli_args import args

    args.cpu = args.cpu or not torch.cuda.is_available()
    import comfy.samplers  # noqa: F401  (before any test: it needs `args` as set above)
