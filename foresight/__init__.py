"""Foresight: faster sampling of diffusion transformers without retraining. See `engine` and `hosts`."""

from .engine import ForesightConfig, RunStats

__all__ = ["ForesightConfig", "RunStats"]
