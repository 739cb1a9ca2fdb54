"""Two ways to run the demo: a real headless ComfyUI server, or diffusers where ComfyUI is not installed."""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from foresight.engine import METHODS
from models.demo.pipeline import DemoPipeline

ROOT = Path(__file__).resolve().parents[1]
API_PROMPT = Path(__file__).with_name("foresight_demo.api.json")  # workflows/foresight_demo.json as the server takes it


@dataclass
class Clip:
    """A generated video: frames (T, H, W, 3) in [0, 1], wall seconds, RunStats.to_dict(), None for a plain run."""

    frames: np.ndarray
    seconds: float
    stats: dict | None


# Left alone, glibc gives memory back to the kernel and takes it again all the time, in some runs and not in others; in
# a virtual machine that made the same plain run take 3.6 or 5.8 s. Measured runs all keep what they have taken.
_KEEP = 1 << 30
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(_KEEP), "MALLOC_MMAP_THRESHOLD_": str(_KEEP)}


def steady_malloc() -> None:
    """The same for this process; does nothing where the C library is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, _KEEP)


class ComfyUI:
    """A headless ComfyUI server with this pack in it, on a free port, in a folder of its own; a context manager.

    Args:
        path: ComfyUI's folder.
        log: Where the server's output goes.
        base: A folder with models and other packs for it; an empty one that is removed at the end by default.
        page: The frontend to serve, a folder of its static files; the one that ComfyUI brings by default.
    """

    def __init__(self, path: Path, log: Path, base: Path | None = None, page: Path | None = None):
        self._path, self.log, self._given, self._page = path, log, base, page

    def __enter__(self) -> "ComfyUI":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._base = self._given or Path(tempfile.mkdtemp(prefix="foresight-demo-"))
        shutil.copytree(
            ROOT,
            self._base / "custom_nodes" / "ComfyUI-Foresight",
            ignore=shutil.ignore_patterns(".git", "out", "tests", "bench", "__pycache__"),
        )
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port), "--disable-api-nodes"]
        command += ["--base-directory", str(self._base), "--database-url", "sqlite:///:memory:"]
        command += ["--front-end-root", str(self._page)] if self._page is not None else []
        command += [] if torch.cuda.is_available() else ["--cpu"]
        with self.log.open("w") as out:
            self._process = subprocess.Popen(
                command, cwd=self._path, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **_MALLOC}
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()
        if self._given is None:
            shutil.rmtree(self._base, ignore_errors=True)

    def _wait_until_up(self, limit: float = 180.0) -> None:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            time.sleep(0.5)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"ComfyUI at {self._path} did not come up in {limit:.0f} s; the end of {self.log}:\n{tail}")

    def get(self, route: str) -> bytes:
        with urllib.request.urlopen(self.url + route, timeout=30) as response:
            return response.read()

    def run(self, prompt: dict, extra: dict | None = None) -> dict:
        """Queue an API prompt, with `extra` beside it, and wait for it: its entry of the history."""
        body = json.dumps({"prompt": prompt, "extra_data": extra or {}}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                prompt_id = json.load(response)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"ComfyUI refused the prompt: {error.read().decode()}") from error
        while True:
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history and history[prompt_id]["status"]["completed"]:
                return {"prompt_id": prompt_id, **history[prompt_id]}
            if prompt_id in history and history[prompt_id]["status"]["status_str"] == "error":
                raise RuntimeError(f"ComfyUI failed: {history[prompt_id]['status']['messages']}")
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI stopped while it worked; see {self.log}")
            time.sleep(0.05)

    def generate(self, text: str, seed: int, settings: dict | None, steps: int = 50) -> Clip:
        """Run the demo workflow with one prompt; `settings` are the Foresight node's, None takes the node out."""
        prompt = demo_prompt(text, seed, settings, steps)
        entry = self.run(prompt)
        times = {name: data["timestamp"] for name, data in entry["status"]["messages"]}
        frames = []
        for image in entry["outputs"]["frames"]["images"]:
            query = "&".join(f"{key}={image[key]}" for key in ("filename", "subfolder", "type"))
            frames.append(_read_png(self.get(f"/view?{query}")))
        runs = json.loads(self.get("/foresight/runs"))
        stats = [run for run in runs if run["prompt_id"] == entry["prompt_id"]]
        seconds = (times["execution_success"] - times["execution_start"]) / 1000
        return Clip(np.stack(frames), seconds, stats[-1] if stats else None)


def demo_prompt(text: str, seed: int, settings: dict | None, steps: int = 50) -> dict:
    """The demo workflow in the server's format, with these values, and a node "frames" that saves its frames."""
    prompt = json.loads(API_PROMPT.read_text())
    ids = {node["class_type"]: name for name, node in prompt.items()}  # prompts occur twice and are found by link
    sampler = prompt[ids["KSampler"]]["inputs"]
    sampler.update(seed=seed, steps=steps)
    prompt[sampler["positive"][0]]["inputs"]["text"] = text
    if settings is None:
        sampler["model"] = prompt.pop(ids["ForesightApply"])["inputs"]["model"]
    else:
        prompt[ids["ForesightApply"]]["inputs"].update(settings)
    prompt["frames"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [ids["VAEDecode"], 0], "filename_prefix": "foresight_frames"},
    }
    return prompt


class Diffusers:
    """diffusers' stock Wan pipeline around the demo model; a context manager like `ComfyUI`."""

    def __enter__(self) -> "Diffusers":
        steady_malloc()
        self._pipe = DemoPipeline()
        return self

    def __exit__(self, *_) -> None:
        del self._pipe

    def generate(self, text: str, seed: int, settings: dict | None, steps: int = 50) -> Clip:
        """One video of the prompt; `settings` are those of the node, None runs without Foresight."""
        from foresight.hosts.diffusers import apply_foresight

        handle = None
        if settings is not None:
            own = dict(settings)
            handle = apply_foresight(self._pipe.transformer, METHODS[own.pop("method", "forecast")](**own))
        try:
            start = time.perf_counter()
            video = self._pipe(text, seed, steps)
            seconds = time.perf_counter() - start
            stats = handle and handle.stats.to_dict()
        finally:
            if handle is not None:
                handle.remove()
        return Clip(video.mul(255).round().div(255).numpy(), seconds, stats)


def find(out: Path) -> ComfyUI | Diffusers:
    """The host to use: ComfyUI where COMFYUI_PATH says it is (run.py sets it), else diffusers."""
    path = os.environ.get("COMFYUI_PATH")
    return ComfyUI(Path(path), out / "comfyui.log") if path else Diffusers()


def _read_png(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(BytesIO(data)).convert("RGB"), dtype=np.float32) / 255
