"""The hosts: how the engine gets between the blocks of a model in ComfyUI and in diffusers."""
