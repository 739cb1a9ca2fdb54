"""Foresight: faster sampling of diffusion transformers without retraining.

Each host, `foresight.hosts.diffusers` and `foresight.hosts.comfyui`, has an `apply_foresight`. It takes a
`ForecastConfig` or a `PaperConfig`; the type chooses the method.
"""

from .engine import Config, ForecastConfig, PaperConfig, RunStats

__all__ = ["Config", "ForecastConfig", "PaperConfig", "RunStats"]
