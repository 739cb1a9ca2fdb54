"""The Foresight engine (arXiv 2506.00329).

Decides which DiT blocks to reuse and keeps what they need. Torch and the standard library only.
"""

from .config import ForesightConfig
from .prefix.call import Call
from .run import Session
from .stats import RunStats

__all__ = ["Call", "ForesightConfig", "RunStats", "Session"]
