"""The demo model in a ComfyUI without a server, for the benchmarks; COMFYUI_PATH says where ComfyUI is."""

import importlib
import os
import platform
import sys
import time
from dataclasses import dataclass

from demo import hosts
from demo.prompt import embed


@dataclass
class Run:
    """One sampler run: decoded clip (T, H, W, 3), wall seconds of sampling, RunStats.to_dict() or None when plain."""

    clip: object
    seconds: float
    stats: dict | None


class Demo:
    """The demo model behind ComfyUI's own sampling code.

    Raises:
        SystemExit: COMFYUI_PATH is not set.
    """

    def __init__(self):
        if not os.environ.get("COMFYUI_PATH"):
            sys.exit("COMFYUI_PATH is not set: the benchmarks run the demo model in ComfyUI")
        hosts.steady_malloc()
        sys.path.insert(0, os.environ["COMFYUI_PATH"])
        arguments, sys.argv = sys.argv, sys.argv[:1]  # ComfyUI reads them as its own
        import torch
        from comfy.cli_args import args

        args.cpu = args.cpu or not torch.cuda.is_available()
        import comfy.sample

        sys.argv = arguments
        hosts.load_pack()
        self._torch, self._sample = torch, comfy.sample.sample
        self._live = importlib.import_module("foresight_pack.adapters.live")
        self._apply = importlib.import_module("foresight_pack.adapters.comfyui").apply_foresight
        self.config = importlib.import_module("foresight_pack.foresight").ForesightConfig
        node = importlib.import_module("foresight_pack.nodes.demo").ForesightDemoModel
        self._model, self._vae = node.execute().args

    def run(self, prompt: str, seed: int, settings=None, steps: int = 50) -> Run:
        """Sample one video; `settings` is a ForesightConfig, None leaves the model alone."""
        torch = self._torch
        latent = torch.zeros(1, 12, 8, 16, 16)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        positive, negative = ([[embed([text]), {}]] for text in (prompt, ""))
        patcher = self._model if settings is None else self._apply(self._model, settings)
        options = {"disable_pbar": True, "seed": seed}
        begin = time.perf_counter()
        with torch.inference_mode():
            out = self._sample(patcher, noise, steps, 4.0, "euler", "simple", positive, negative, latent, **options)
        seconds = time.perf_counter() - begin
        return Run(self._vae.decode(out)[0].numpy(), seconds, None if settings is None else self._live.runs()[-1])

    def machine(self) -> dict:
        """Where the figures come from."""
        return {
            "system": platform.platform(),
            "processor": hosts.processor(),
            "cores": os.cpu_count(),
            "device": str(self._model.load_device),
            "torch": self._torch.__version__,
        }
