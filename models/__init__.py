"""Models that the pack brings to ComfyUI: Latte-1, Open-Sora 1.2, CogVideoX as published, and a tiny bundled one."""
