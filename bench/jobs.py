"""One job of `bench.quality`: points on one model, workload and prompt, with plain runs between them.

Runs in a worker process with one thread; keeps its result in a file, so that an interrupted run goes on where it was.
"""

import functools
import gc
import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from foresight.report.quality import mean_psnr, ssim
from models.demo import model
from tools import hosts
from tools.demo.clips import check

from .contenders import CONTENDERS
from .fronts import SAME
from .models import MODELS
from .peers import calibrate
from .workloads import Workload, networks_of

CALIBRATION = (("red box moving up", 501), ("cyan ball moving right", 502))  # in no half of bench.quality's prompts
PLAIN_EVERY = 8  # contender runs between two plain ones
AGREE = 60.0  # dB, least between the plain clips of the two hosts
CODE = ("jobs", "meter", "comfy", "diffusers_host")  # what every result depends on, beside a contender's own file
BY_NAME = {contender.name: contender for contender in CONTENDERS}


@dataclass(frozen=True)
class Job:
    """What one worker does in one go; `points` are (contender's name, index in its sweep).

    Attributes:
        points: All of Foresight or none: what others did need not run again when Foresight's code has changed.
        weigh: Whether the bytes held are looked at.
    """

    model: str
    workload: Workload
    prompt: str
    seed: int
    points: tuple[tuple[str, int], ...]
    weigh: bool = False

    @property
    def is_ours(self) -> bool:
        return any(BY_NAME[name].ours for name, _ in self.points)

    @property
    def signature(self) -> str:
        """Of everything the result depends on: the points, the weights and the code."""
        points = [(name, BY_NAME[name].settings(index)) for name, index in self.points]
        digest = hashlib.sha256(json.dumps([{**asdict(self), "points": points}, _weights(self.model)]).encode())
        code = [Path(__file__).with_name(f"{name}.py") for name in CODE]
        code += [Path(__file__).with_name(f"{name}.py") for name in {BY_NAME[n].file for n, _ in self.points}]
        code += sorted((hosts.ROOT / "foresight").rglob("*.py")) if self.is_ours else []
        for path in sorted(set(code)):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    @property
    def file_name(self) -> str:
        place = self.workload.name.replace(" + ", "+").replace(" ", "")
        return f"{self.model}-{place}-{self.seed}-{'ours' if self.is_ours else 'peers'}.json"


def _weights(name: str) -> list[str]:
    """A hash of each file that a model's weights come from; the bundled one is what some others differ from."""
    paths = [model.WEIGHTS, *(MODELS[network].path for network in networks_of(name) if network != "wan")]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def prepare() -> None:
    """Make this process one that measures."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    hosts.steady_malloc()
    both_hosts("wan")  # ComfyUI sets up logging when it is imported
    import cache_dit  # noqa: F401  likewise

    logging.disable(logging.WARNING)


@functools.lru_cache(maxsize=None)
def both_hosts(name: str) -> tuple:
    """(comfy.Demo, diffusers_host.Host) of a model."""
    from .comfy import Demo
    from .diffusers_host import Host

    demo = Demo(name, pytorch_attention=True)
    return demo, Host(name, demo)


def machine(name: str) -> dict:
    """Where the figures come from, with the versions of the caches."""
    import cache_dit
    import comfyui_version
    import diffusers

    versions = {
        "comfyui": comfyui_version.__version__,
        "diffusers": diffusers.__version__,
        "cache_dit": cache_dit.__version__,
    }
    return {**both_hosts(name)[0].machine(), **versions}


def sampling_check(name: str, prompt: str, seed: int) -> dict:
    """See `bench.sampling_check`."""
    from . import sampling_check as check_of

    return check_of.measure(both_hosts(name)[1], prompt, seed)


def result(job: Job, folder: Path) -> dict:
    """The job's result: from its file if nothing that matters has changed since, else from a run."""
    path, signature = folder / job.file_name, job.signature
    if path.is_file():
        known = json.loads(path.read_text())
        if known["signature"] == signature:
            return known
    found = json.dumps({"signature": signature, **run(job, folder)}, indent=1) + "\n"
    path.with_suffix(".part").write_text(found)
    path.with_suffix(".part").replace(path)  # whoever is cut off here leaves no half of a result
    return json.loads(found)


class _Side:
    """One host in one job: its points, and a plain run before, after and after every few of them."""

    def __init__(self, job: Job, host, plain_model=None):
        self.job, self.host, self.plain_model = job, host, plain_model
        self.plain_runs: list[tuple[float, float]] = []  # wall and processor seconds
        self.points: list[dict] = []
        self._after: list[int] = []  # per point, the plain run before it
        self.warm_up()
        self.clip, self.meter = self.plain(weigh=job.weigh)

    def warm_up(self) -> None:
        """Load and allocate what no measured run should have to."""
        job = self.job
        short = replace(job.workload, stages=tuple(min(3, steps) for steps in job.workload.stages))
        self.host.sample(self.plain_model, job.prompt, job.seed, short)

    def measure(self, what, weigh: bool = False):
        gc.collect()
        return self.host.sample(what, self.job.prompt, self.job.seed, self.job.workload, weigh)

    def plain(self, weigh: bool = False):
        clip, meter = self.measure(self.plain_model, weigh=weigh)
        self.plain_runs.append((meter.seconds, meter.cpu_seconds))
        return clip, meter

    def point(self, contender, settings: dict, build) -> None:
        """Measure one point; `build` gives what `measure` takes, both may raise."""
        known = {"contender": contender.name, "host": contender.host, "settings": settings}
        known["recommended"] = settings == contender.recommended
        try:
            clip, meter = self.measure(build(), weigh=self.job.weigh)
        except Exception as error:  # whatever a cache raises: that it can't run is the result
            known["cannot_run"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            known |= {"seconds": (meter.seconds, meter.cpu_seconds)}
            known |= {"work_share": meter.multiply_adds / self.meter.multiply_adds}
            known |= compare(self.clip, clip, self.job.prompt)
            if self.job.weigh:
                known["held_bytes"] = max(0, meter.held_bytes - self.meter.held_bytes)
        self.points.append(known)
        self._after.append(len(self.plain_runs) - 1)
        if len(self.points) % PLAIN_EVERY == 0:
            self.plain()

    def finish(self) -> bool:
        """Set the time ratios; whether the last plain run is bit for bit the first."""
        clip, _ = self.plain()
        for known, before in zip(self.points, self._after, strict=True):
            if "seconds" in known:
                around = self.plain_runs[before : before + 2]
                wall, cpu = (2 * mine / (a + b) for mine, a, b in zip(known["seconds"], *around, strict=True))
                known |= {"time_ratio": wall, "cpu_ratio": cpu}
        return bool((clip == self.clip).all())

    def summary(self) -> dict:
        return {"seconds": self.plain_runs, "checker": matches(self.clip, self.job.prompt)}


def run(job: Job, folder: Path) -> dict:
    """Measure all points of a job, and nothing on a host that has none."""
    began = time.process_time()
    demo, host = both_hosts(job.model)
    chosen = [(BY_NAME[name], BY_NAME[name].settings(index)) for name, index in job.points]
    needed = dict.fromkeys(contender.host for contender, _ in chosen)
    patchers = demo.plain(job.workload.shift)
    sides = {name: _Side(job, demo, patchers) if name == "comfyui" else _Side(job, host) for name in needed}
    agree = _agreement(sides, job.model)
    ratios = calibration(job, host, folder) if any(contender.calibrated for contender, _ in chosen) else None
    for contender, settings in chosen:
        if contender.host == "comfyui":
            apply = functools.partial(contender.apply, demo, settings=settings)
            sides["comfyui"].point(contender, settings, lambda apply=apply: [apply(patcher) for patcher in patchers])
        else:
            apply = functools.partial(contender.apply, settings=settings, calibration=ratios)
            sides["diffusers"].point(contender, settings, lambda apply=apply: apply)
    pristine = {name: side.finish() for name, side in sides.items()}
    return {
        **{"model": job.model, "workload": job.workload.name, "prompt": job.prompt, "seed": job.seed},
        "hosts_agree_db": agree,
        "cpu_seconds": time.process_time() - began,
        "pristine": pristine,
        "plain": {name: side.summary() for name, side in sides.items()},
        "points": [known for side in sides.values() for known in side.points],
    }


def _agreement(sides: dict[str, "_Side"], name: str) -> float | None:
    """PSNR between the plain clips of the two hosts; None where only one is needed.

    Raises:
        RuntimeError: they differ, so that the hosts do not run the same model.
    """
    if len(sides) < 2:
        return None
    agree = min(mean_psnr(sides["comfyui"].clip, sides["diffusers"].clip), SAME)
    if agree < AGREE:
        raise RuntimeError(f"{name}: the hosts' plain clips agree to {agree:.1f} dB, {AGREE} are needed")
    return agree


def calibration(job: Job, host, folder: Path) -> list[list[float]]:
    """MagCache's ratios of a model and workload, from a file if another job has made them."""
    path = folder / f"calibration-{job.file_name.rsplit('-', 2)[0]}.json"
    signature = [asdict(job.workload), _weights(job.model)]
    if path.is_file() and (known := json.loads(path.read_text()))["signature"] == json.loads(json.dumps(signature)):
        return known["ratios"]
    ratios = calibrate(host, CALIBRATION, job.workload)
    path.write_text(json.dumps({"signature": signature, "ratios": ratios}) + "\n")
    return ratios


def matches(clip, prompt: str) -> bool:
    """Whether the checker reads in a clip (T, H, W, 3) what the prompt says."""
    return bool(check(clip.numpy()).matches(prompt))


def compare(plain, clip, prompt: str) -> dict:
    """How close a clip (T, H, W, 3) is to the plain one, and whether it still shows the prompt."""
    return {
        "psnr": min(mean_psnr(plain, clip), SAME),
        "ssim": float(ssim(plain, clip).mean()),
        "temporal_psnr": min(mean_psnr(plain.diff(dim=0), clip.diff(dim=0)), SAME),
        "checker": matches(clip, prompt),
    }
