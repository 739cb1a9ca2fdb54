"""Foresight: faster sampling of diffusion transformers without retraining.

`foresight.hosts.diffusers` and `foresight.hosts.comfyui` have `apply_foresight`; its settings are of the type of one
method.
"""

from .engine import Config, ForecastConfig, PaperConfig, RunStats

__all__ = ["Config", "ForecastConfig", "PaperConfig", "RunStats"]
