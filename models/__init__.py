"""Latte-1 and Open-Sora 1.2 as native ComfyUI models: the two of the paper's three models that core does not have."""
