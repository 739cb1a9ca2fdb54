"""What people run, as data: sampler, steps, shift and CFG of every column of the tables, and the prompts.

Which they are: those of the official video templates (29 of 69 have 20 steps, 31 have 10 or fewer; 27 use euler, 20
uni_pc, 10 euler_ancestral, 5 res_multistep) and, for comparison with papers, 50 euler steps.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

from .models import MODELS

SMALL = ("wan", "wan_deep", "cogvideox")
NETWORKS = {  # models that are not one of `bench.models.MODELS` themselves; high noise first
    "experts": ("wan_high", "wan_low"),
    "distilled": ("wan_distilled",),
}
SHORT = 10  # steps of a stage up to which a contender's sweep is its short one


@dataclass(frozen=True)
class Workload:
    """One way to sample.

    Attributes:
        stages: Steps of each KSamplerAdvanced; each samples with a network of its own, the last one to the end.
        shift: Flow shift of the noise levels, as the node ModelSamplingSD3 sets it.
        models: Which of `bench.models.MODELS` it is run on.
        whole: Whether the whole sweeps are run, not only the few points that `--quick` takes.
        compared_at: Speed-up by work at which README's small table gives the quality.
    """

    name: str
    sampler: str
    stages: tuple[int, ...]
    shift: float
    cfg: float = 4.0
    models: tuple[str, ...] = SMALL
    whole: bool = True
    compared_at: float = 2.0

    @property
    def steps(self) -> int:
        return sum(self.stages)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first step, step after the last) of each stage."""
        return list(pairwise(accumulate(self.stages, initial=0)))

    @property
    def is_short(self) -> bool:
        return max(self.stages) <= SHORT


WORKLOADS = (
    Workload("euler 20", "euler", (20,), 5.0),
    Workload("uni_pc 20", "uni_pc", (20,), 8.0),
    Workload("res_multistep 20", "res_multistep", (20,), 12.0),
    Workload("euler_ancestral 20", "euler_ancestral", (20,), 5.0, models=SMALL[:1], whole=False),
    Workload("euler 10 + 10", "euler", (10, 10), 5.0, models=("experts",)),
    Workload("euler 8", "euler", (8,), 5.0, cfg=1.0, models=("distilled",), compared_at=1.5),
    Workload("euler 4", "euler", (4,), 5.0, cfg=1.0, models=("distilled",), compared_at=4 / 3),
    Workload("euler 50", "euler", (50,), 3.0, whole=False, compared_at=3.0),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}
PAPERS = "euler 50"  # where every contender runs, those of `LAST` too
LAST = ("FasterCache", "PAB")  # whose fastest point there is 1.2x by work: they need not run in the other columns
QUICK = ("euler 20", "euler 10 + 10", "euler 8")

PROMPTS = {  # no pair occurs in both halves, in demo/evaluate.py, demo/run.py or bench/settings.py
    "report": (
        ("cyan ball moving down", 401),
        ("red box moving left", 402),
        ("green ring moving right", 403),
        ("magenta box moving right", 404),
        ("yellow ball moving up", 405),
        ("blue ring moving left", 406),
    ),
    "tune": (
        ("magenta ball moving left", 301),
        ("green box moving down", 302),
        ("red ring moving right", 303),
        ("cyan ring moving left", 304),
        ("yellow ball moving down", 305),
        ("blue box moving up", 306),
    ),
}


def networks_of(name: str) -> tuple[str, ...]:
    """Which of `bench.models.MODELS` a model consists of."""
    return NETWORKS.get(name, (name,))


def missing(name: str) -> str | None:
    """Why a model can't be run, a sentence; None when all its weights are there."""
    for network in networks_of(name):
        if network not in MODELS:
            return f"{name} is left out: bench/models.py does not know the network {network}."
        if network != "wan" and not MODELS[network].path.is_file():
            file = MODELS[network].path.name
            return f"{name} is left out: {file} is missing, `python -m bench.models {network}` makes it."
    return None


def evaluations(sampler: str, steps: int) -> int:
    """How often the model is evaluated in a stage; Heun's last step is one of Euler's."""
    return 2 * steps - 1 if sampler == "heun" else steps
