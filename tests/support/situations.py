"""Workflows that today's caches get wrong, each through ComfyUI's own sampling code."""

import comfy.controlnet
import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import comfy_extras.nodes_context_windows as windows_nodes
import comfy_extras.nodes_custom_sampler as guider_nodes
import comfy_extras.nodes_easycache as easycache_nodes
import comfy_extras.nodes_pag as pag_nodes
import comfy_extras.nodes_perpneg as perpneg_nodes
import comfy_extras.nodes_slg as slg_nodes
import pytest
import torch

import nodes
from support import comfy_models
from support.comfy_models import noise, sample

WARMUP = 3


def node(module, name):
    """A node class that not every ComfyUI that we support has."""
    if not hasattr(module, name):
        pytest.skip(f"this ComfyUI has no {name}")
    return getattr(module, name)


def only(result):
    """The one output of a V3 node."""
    return result.args[0]


def guided(model, guider, steps=14, latent=None, sampler="euler"):
    """One run of a guider as SamplerCustomAdvanced does it."""
    latent = model.latent(1) if latent is None else latent
    sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", steps)
    with torch.inference_mode():
        return guider.sample(
            noise(*latent.shape, seed=100), latent, comfy.samplers.sampler_object(sampler), sigmas, seed=0,
            disable_pbar=True,
        )  # fmt: skip


# ---- each situation runs a workflow on a model, with `patch` where the Foresight node would be

SITUATIONS = {}


def situation(model="wan", warmup=WARMUP, reuses=True):
    """Register a workflow: its model, how many evaluations its warmup takes, whether anything can be reused."""

    def register(workflow):
        SITUATIONS[workflow.__name__] = (workflow, model, warmup, reuses)
        return workflow

    return register


@situation("ltxv")
def cond_and_uncond_of_unequal_length_in_two_calls(model, patch):
    return sample(model, patch(model.patcher), tokens=(6, 4))


@situation()
def low_memory_splits_the_batch_in_mid_run(model, patch):
    patcher, calls = patch(model.patcher), []

    def free_memory(self, device):
        calls.append(device)
        return 1e12 if len(calls) % 5 < 3 else 0

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", free_memory)
        out = sample(model, patcher, steps=16)
    assert len(calls) >= 6  # both kinds of calls occurred
    return out


@situation()
def cfg_1(model, patch):
    return sample(model, patch(model.patcher), cfg=1.0)


@situation()
def cfg_override(model, patch):
    patched = only(node(guider_nodes, "CFGOverride").execute(patch(model.patcher), 1.0, 0.4, 0.7))
    return sample(model, patched, steps=20)


@situation()
def two_positives_combined(model, patch):
    return sample(model, patch(model.patcher), positive=model.text(1) + model.text(3))


@situation()
def area_conds(model, patch):
    left, right = ((3, 4, 2, 0, 0, x) for x in (0, 2))
    return sample(model, patch(model.patcher), positive=model.text(1, area=left) + model.text(3, area=right))


@situation()
def conds_with_start_and_end_percent(model, patch):
    early, late = model.text(1, start_percent=0.0, end_percent=0.6), model.text(3, start_percent=0.6, end_percent=1.0)
    return sample(model, patch(model.patcher), positive=early + late + model.text(4), steps=20)


@situation()
def dual_cfg(model, patch):
    guider = only(
        guider_nodes.DualCFGGuider.execute(
            patch(model.patcher), model.text(1), model.text(3), model.text(2), 3.0, 2.0, "regular"
        )
    )
    return guided(model, guider)


@situation()
def dual_cfg_nested(model, patch):
    guider = only(
        guider_nodes.DualCFGGuider.execute(
            patch(model.patcher), model.text(1), model.text(3), model.text(2), 3.0, 2.0, "nested"
        )
    )
    return guided(model, guider)


@situation()
def perp_neg(model, patch):
    guider = only(
        perpneg_nodes.PerpNegGuider.execute(patch(model.patcher), model.text(1), model.text(2), model.text(3), 4.0, 1.0)
    )
    return guided(model, guider)


@situation()
def batch_of_2(model, patch):
    return sample(model, patch(model.patcher), batch=2)


@situation("hunyuan")
def batch_of_4(model, patch):
    return sample(model, patch(model.patcher), batch=4)


@situation()
def skip_layer_guidance(model, patch):
    patched = only(slg_nodes.SkipLayerGuidanceDiT.execute(patch(model.patcher), 2.0, 0.0, 0.7, "1", "", 0))
    return sample(model, patched, steps=20)


@situation("hunyuan")
def skip_layer_guidance_of_the_uncond_only(model, patch):
    patched = only(slg_nodes.SkipLayerGuidanceDiTSimple.execute(patch(model.patcher), 0.0, 0.8, "1", "0"))
    return sample(model, patched, steps=20)


@situation()
def perturbed_attention_guidance(model, patch):
    return sample(model, only(pag_nodes.PerturbedAttentionGuidance.execute(patch(model.patcher), 2.0)))


def context_windows(model, patch, schedule):
    patched = only(
        windows_nodes.ContextWindowsManualNode.execute(
            patch(model.patcher),
            context_length=4,
            context_overlap=1,
            context_schedule=schedule,
            context_stride=1,
            closed_loop=False,
            fuse_method="pyramid",
            dim=2,
            freenoise=False,
            cond_retain_index_list="",
        )
    )
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(model.text(1), model.text(2))
    guider.set_cfg(3.0)
    return guided(model, guider, latent=torch.zeros(1, 16, 10, 4, 4))


@situation()
def static_context_windows(model, patch):
    return context_windows(model, patch, "standard_static")


@situation(reuses=None)
def uniform_context_windows(model, patch):
    return context_windows(model, patch, "standard_uniform")


@situation()
def batched_context_windows(model, patch):
    return context_windows(model, patch, "batched")


@situation()
def lora_by_weight_hooks(model, patch):
    lora = {
        "diffusion_model.blocks.1.ffn.0.lora_up.weight": noise(64, 2, seed=7),
        "diffusion_model.blocks.1.ffn.0.lora_down.weight": noise(2, 48, seed=8),
    }
    hooks = comfy.hooks.create_hook_lora(lora, 0.5, 0.0)
    return sample(model, patch(model.patcher), positive=comfy.hooks.set_hooks_for_conditioning(model.text(1), hooks))


class Residuals(comfy.controlnet.ControlBase):
    """A control model whose residuals depend on the noise level, as those of a real one do."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        rows = x_noisy.shape[0]
        add = noise(1, 12, 48, seed=8).expand(rows, -1, -1) * (1 + t.flatten()[0])
        return {"input": [add, add * 0.5, add], "output": [add, None, add]}

    def get_models(self):
        return []

    def copy(self):
        other = Residuals()
        self.copy_to(other)
        return other


@situation("hunyuan")
def controlnet_residuals(model, patch):
    positive = model.text(1, control=Residuals(), control_apply_to_uncond=True)
    return sample(model, patch(model.patcher), positive=positive)


@situation()
def inpaint_mask(model, patch):
    mask = torch.zeros(1, 1, 3, 4, 4)
    mask[..., :2] = 1
    return sample(model, patch(model.patcher), noise_mask=mask)


@situation()
def start_latents_with_denoise_below_1(model, patch):
    return sample(model, patch(model.patcher), latent=noise(1, 16, 3, 4, 4, seed=9), denoise=0.6)


@situation()
def euler_ancestral(model, patch):
    return sample(model, patch(model.patcher), sampler="euler_ancestral")


@situation()
def res_multistep(model, patch):
    return sample(model, patch(model.patcher), sampler="res_multistep")


@situation()
def uni_pc(model, patch):
    return sample(model, patch(model.patcher), sampler="uni_pc")


@situation(warmup=2 * WARMUP)
def heun(model, patch):
    return sample(model, patch(model.patcher), sampler="heun")


@situation(warmup=2 * WARMUP)
def dpmpp_2s_ancestral(model, patch):
    return sample(model, patch(model.patcher), sampler="dpmpp_2s_ancestral")


@situation(warmup=2 * WARMUP)
def dpmpp_sde(model, patch):
    return sample(model, patch(model.patcher), sampler="dpmpp_sde")


@situation(reuses=None)  # the noise that it adds changes the blocks
def sa_solver(model, patch):
    return sample(model, patch(model.patcher), sampler="sa_solver")


@situation(warmup=None, reuses=False)
def dpm_adaptive(model, patch):
    return sample(model, patch(model.patcher), sampler="dpm_adaptive")


@situation(reuses=False)
def distilled_4_steps(model, patch):
    return sample(model, patch(model.patcher), steps=4, cfg=1.0)


@situation()
def distilled_8_steps(model, patch):
    return sample(model, patch(model.patcher), steps=8, cfg=1.0)


@situation()
def easycache_on_the_same_model(model, patch):
    return sample(model, only(easycache_nodes.EasyCacheNode.execute(patch(model.patcher), 0.5, 0.3, 0.9, False)))


@situation()
def easycache_before_foresight(model, patch):
    return sample(model, patch(only(easycache_nodes.EasyCacheNode.execute(model.patcher, 0.5, 0.3, 0.9, False))))


@situation()
def lazycache_on_the_same_model(model, patch):
    return sample(model, only(easycache_nodes.LazyCacheNode.execute(patch(model.patcher), 0.5, 0.3, 0.9, False)))


@situation()
def dual_model(model, patch):
    other = comfy_models.wan()
    with torch.no_grad():
        for p in other.patcher.model.diffusion_model.parameters():
            p *= 0.9
    guider = only(
        node(guider_nodes, "DualModelGuider").execute(
            patch(model.patcher), model.text(1), 3.0, model_negative=other.patcher, negative=model.text(2)
        )
    )
    return guided(model, guider)


@situation()
def high_and_low_noise_models_in_two_stages(model, patch):
    other = comfy_models.wan()
    with torch.no_grad():
        for p in other.patcher.model.diffusion_model.parameters():
            p *= 0.95
    latent = {"samples": model.latent(1)}
    stages = [(model.patcher, "enable", 0, 10, "enable"), (other.patcher, "disable", 10, 20, "disable")]
    for patcher, add_noise, start, end, leftover in stages:
        text = model.text(1), model.text(2)
        with torch.inference_mode():
            (latent,) = nodes.KSamplerAdvanced().sample(
                patch(patcher), add_noise, 5, 20, 3.0, "euler", "simple", *text, latent, start, end, leftover
            )
    return latent["samples"]
