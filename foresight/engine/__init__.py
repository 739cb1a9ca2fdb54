"""The engine decides what a run leaves out, and keeps what that needs. Torch and the standard library only.

A `Run` is one sampler run. What it leaves out a policy decides, one for each method: `forecast` and `prefix` (the
paper's, arXiv 2506.00329).
"""

from .budget import Offload
from .config import Config
from .forecast import ForecastConfig
from .prefix.policy import PaperConfig
from .run import Run
from .stats import RunStats
from .tape import Restart

METHODS: dict[str, type[Config]] = {config.name: config for config in (ForecastConfig, PaperConfig)}

__all__ = ["METHODS", "Config", "ForecastConfig", "Offload", "PaperConfig", "Restart", "Run", "RunStats"]
