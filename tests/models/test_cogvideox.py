"""The published layout of CogVideoX in core's class, against diffusers."""

import json

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("comfy.ldm.cogvideo", reason="this ComfyUI has no CogVideoX")

import comfy.sample
import safetensors.torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

from foresight import PaperConfig
from foresight.hosts import comfyui
from models import loading
from support.reference_weights import fill, named

KINDS = {"2B": False, "5B": True}  # whether positions are rotary
# Core's rotary positions are diffusers' at the published size alone; at others diffusers stretches them.
LATENT = {"2B": (1, 16, 3, 10, 12), "5B": (1, 16, 1, 60, 90)}


def reference(rotary: bool):
    config = {"num_attention_heads": 3, "attention_head_dim": 64, "num_layers": 3, "time_embed_dim": 24}
    model = diffusers.CogVideoXTransformer3DModel(
        **config, text_embed_dim=32, use_rotary_positional_embeddings=rotary, max_text_seq_length=6
    )
    return fill(model)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """(name, diffusers' model, path of its file)."""
    rotary = KINDS[request.param]
    model = reference(rotary)
    path = tmp_path_factory.mktemp("cogvideox") / "model.safetensors"
    metadata = {"config": json.dumps({"use_rotary_positional_embeddings": rotary})}
    safetensors.torch.save_file(model.state_dict(), path, metadata)
    return request.param, model, str(path)


def velocity(name, model, x, text, timestep):
    """diffusers' prediction for x (B, C, T, h, w)."""

    class Pipeline:
        vae_scale_factor_spatial, transformer = 8, model

    rotary = None
    if KINDS[name]:
        size = (8 * x.shape[3], 8 * x.shape[4], x.shape[2], torch.device("cpu"))
        rotary = CogVideoXPipeline._prepare_rotary_positional_embeddings(Pipeline(), *size)
    t = torch.full((x.shape[0],), timestep)
    with torch.no_grad():
        out = model(x.transpose(1, 2), text, t, image_rotary_emb=rotary, return_dict=False)[0]
    return out.transpose(1, 2)


def sample(patcher, noise, texts, steps, cfg):
    positive, negative = ([[text, {}]] for text in texts)
    with torch.inference_mode():
        args = (noise, steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(noise))
        return comfy.sample.sample(patcher, *args, disable_pbar=True, seed=0)


def test_the_network_is_diffusers(kind):
    name, model, path = kind
    patcher = loading.load_cogvideox(path, {"dtype": torch.float32})
    x, text = named("cx", *LATENT[name]), named("ct", 1, 6, 32)
    got = patcher.model.diffusion_model(x, torch.tensor([501.0]), text)
    want = velocity(name, model, x, text, 501)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_euler_and_simple_are_its_ddim(kind):
    """The published scheduler, without noise: trailing timesteps, zero terminal signal, for 2B with the SNR shift."""
    name, model, path = kind
    patcher = loading.load_cogvideox(path, {"dtype": torch.float32})
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=1.0 if KINDS[name] else 3.0,
    )
    steps, cfg = 10, 6.0
    scheduler.set_timesteps(steps)
    texts, noise = (named("ct", 1, 6, 32), named("empty", 1, 6, 32)), named("noise", *LATENT[name])
    x = noise
    for t in scheduler.timesteps.tolist():
        guided, unguided = (velocity(name, model, x, text, t) for text in texts)
        x = scheduler.step(unguided + cfg * (guided - unguided), t, x).prev_sample
    want = patcher.model.process_latent_out(x.float())
    got = sample(patcher, noise, texts, steps, cfg)
    assert (got - want).abs().max() < 2e-3 * want.abs().max()


def test_foresight_reuses_it(kind, caplog):
    name, _, path = kind
    caplog.set_level("INFO")
    patcher = loading.load_cogvideox(path, {"dtype": torch.float32})
    texts, noise = (named("ct", 1, 6, 32), named("empty", 1, 6, 32)), named("noise", 1, 16, 2, 10, 12)
    plain = sample(patcher, noise, texts, 12, 4.0)
    nothing = comfyui.apply_foresight(patcher, PaperConfig(threshold=1e-9))
    assert torch.equal(plain, sample(nothing, noise, texts, 12, 4.0))
    much = comfyui.apply_foresight(patcher, PaperConfig(threshold=2.0, warmup_steps=2))
    assert torch.isfinite(sample(much, noise, texts, 12, 4.0)).all()
    assert [r for r in caplog.records if "Foresight left out" in r.getMessage()]


def test_a_model_in_parts(kind, tmp_path):
    _, model, path = kind
    sd = model.state_dict()
    keys = sorted(sd)
    metadata = {"config": json.dumps({"use_rotary_positional_embeddings": KINDS[kind[0]]})}
    for i, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        file = tmp_path / f"model-0000{i}-of-00002.safetensors"
        safetensors.torch.save_file({key: sd[key] for key in part}, file, metadata)
    first = str(tmp_path / "model-00001-of-00002.safetensors")
    whole, parts = loading.load_cogvideox(path), loading.load_cogvideox(first)
    a, b = (patcher.model.diffusion_model.state_dict() for patcher in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(loading.WrongFile, match="00002-of-00002.safetensors is missing, part 2 of 2"):
        loading.load_cogvideox(first)
