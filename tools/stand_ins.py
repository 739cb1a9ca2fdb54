"""Stand-ins for the nodes of raylight that `workflows/raylight_wan_2_1_t2v.json` has, for tests and pictures.

raylight needs GPUs to be loaded. These nodes have its names and inputs (1.5.1), and do nothing.
"""

from pathlib import Path

SOURCE = '''"""Nodes with the names and inputs of raylight's, which do nothing."""

import comfy.samplers
import folder_paths

ACTORS = ("RAY_ACTORS",)


def node(required, types, names, category="Raylight"):
    """A class of a node as ComfyUI takes it."""

    class Node:
        RETURN_TYPES, RETURN_NAMES, FUNCTION, CATEGORY = types, names, "stand_in", category

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": required()}

        def stand_in(self, **inputs):
            raise RuntimeError("this node only stands in for raylight's")

    return Node


def number(default, low=0, high=10000):
    return ("INT", {"default": default, "min": low, "max": high})


def switch():
    return ("BOOLEAN", {"default": False})


NODE_CLASS_MAPPINGS = {
    "RayInitializer": node(
        lambda: {
            "ray_cluster_address": ("STRING", {"default": "local"}),
            "ray_cluster_namespace": ("STRING", {"default": "default"}),
            "GPU": number(2),
            "ulysses_degree": number(2),
            "ring_degree": number(1),
            "cfg_degree": number(1),
            "dp_degree": number(1),
            "sync_ulysses": switch(),
            "clear_vram_after_sampling": switch(),
            "FSDP": switch(),
            "FSDP_CPU_OFFLOAD": switch(),
            "XFuser_attention": (["TORCH", "TORCH_FLASH"], {"default": "TORCH_FLASH"}),
            "skip_comm_test": switch(),
            "use_mmap": switch(),
        },
        ("RAY_ACTORS_INIT",),
        ("ray_actors_init",),
    ),
    "RayUNETLoader": node(
        lambda: {
            "unet_name": (folder_paths.get_filename_list("diffusion_models"),),
            "weight_dtype": (["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2", "bf16", "fp16"],),
            "ray_actors_init": ("RAY_ACTORS_INIT",),
        },
        ACTORS,
        ("ray_actors",),
    ),
    "RayModelSamplingSD3": node(
        lambda: {
            "ray_actors": ACTORS,
            "shift": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.01}),
        },
        ACTORS,
        ("ray_actors",),
        "Raylight/extra",
    ),
    "XFuserKSamplerAdvanced": node(
        lambda: {
            "add_noise": (["enable", "disable"],),
            "noise_seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
            "steps": number(20, 1),
            "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
            "sampler_name": (comfy.samplers.KSampler.SAMPLERS,),
            "scheduler": (comfy.samplers.KSampler.SCHEDULERS,),
            "ray_actors": ACTORS,
            "positive": ("CONDITIONING",),
            "negative": ("CONDITIONING",),
            "latent_image": ("LATENT",),
            "start_at_step": number(0),
            "end_at_step": number(10000),
            "return_with_leftover_noise": (["disable", "enable"],),
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
        },
        ("LATENT", "RAY_ACTORS"),
        ("latent", "ray_actors"),
    ),
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RayInitializer": "Ray Init Actor",
    "RayUNETLoader": "Load Diffusion Model (Ray)",
    "RayModelSamplingSD3": "ModelSamplingSD3 (Ray)",
    "XFuserKSamplerAdvanced": "XFuser KSampler (Advanced)",
}
'''


def put(base: Path) -> None:
    """Put them as a pack into the folder of a ComfyUI that is about to start."""
    folder = base / "custom_nodes" / "raylight_stand_ins"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(SOURCE, encoding="utf-8")
