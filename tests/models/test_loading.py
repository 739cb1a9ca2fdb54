"""Checkpoints on disk to videos through ComfyUI's own sampling code: schedules, signs, guidance, LoRA, low memory."""

import json

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import safetensors.torch

from foresight import PaperConfig
from foresight.hosts import comfyui
from models import loading
from models.open_sora_config import flow_shift
from pack.nodes import common
from pack.nodes.latte import ForesightLatteConditioning
from pack.nodes.open_sora import ForesightModelSamplingOpenSora, ForesightOpenSoraConditioning
from support import reference_weights as ref
from support.reference_weights import named

HEADS = {"config": json.dumps({"num_attention_heads": 4, "attention_head_dim": 12})}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    state_dicts = {"latte": ref.latte().state_dict(), "open_sora": ref.open_sora().state_dict()}
    state_dicts["open_sora"]["rope.freqs"] = torch.ones(6)  # published, and made again by the model
    for name, state_dict in state_dicts.items():
        safetensors.torch.save_file(state_dict, folder / f"{name}.safetensors", HEADS if name == "latte" else None)
    return {name: str(folder / f"{name}.safetensors") for name in state_dicts}


@pytest.fixture
def latte(files):
    return loading.load_latte(files["latte"], {"dtype": torch.float32})


@pytest.fixture
def sora(files):
    return loading.load_open_sora(files["open_sora"], {"dtype": torch.float32})


def text(name: str, tokens: int, rows: int = 24) -> list:
    """What T5-XXL gives from Load CLIP, type mochi: padded rows and a mask."""
    mask = torch.zeros(1, rows, dtype=torch.int)
    mask[:, :tokens] = 1
    return [[named(name, 1, rows, 32), {"attention_mask": mask}]]


def sample(patcher, noise, positive, negative, cfg, steps, sampler="euler", scheduler="simple", sigmas=None):
    with torch.inference_mode():
        if sigmas is None:
            args = (steps, cfg, sampler, scheduler, positive, negative)
            return comfy.sample.sample(patcher, noise, *args, torch.zeros_like(noise), disable_pbar=True, seed=0)
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        sampler = comfy.samplers.ksampler(sampler)
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)


def outputs(node_output):
    return node_output.args


# ---- sampling


def test_30_steps_of_open_sora_are_those_of_its_own_loop(sora):
    """z += v dt from t = 1 to 0 with t = r t' / (1 + (r - 1) t'), guided by 7, null caption as long as the prompt."""
    width, height, length, steps, cfg = 48, 56, 51, 30, 7.0
    noise = named("sz", 1, 4, 15, 7, 6)
    positive = text("prompt", 9)
    network = ref.open_sora()

    r = (width * height / 512**2 * 15) ** 0.5
    times = [r * t / (1 + (r - 1) * t) for t in (1 - i / steps for i in range(steps + 1))]
    z, rows = noise.clone(), positive[0][0][:, :9]
    for now, later in zip(times, times[1:], strict=False):
        t = torch.tensor([1000 * now])
        guided = -network(z, t, rows)
        unguided = -network(z, t, network.y_embedder.y_embedding[None, :9])
        z = z + (unguided + cfg * (guided - unguided)) * (now - later)
    want = sora.model.process_latent_out(z)

    (patched,) = outputs(ForesightModelSamplingOpenSora.execute(sora, width, height, length))
    pos, neg = outputs(ForesightOpenSoraConditioning.execute(positive, 0.0, 0, 0))
    got = sample(patched, noise, pos, neg, cfg, steps)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_the_fixtures_loop_through_a_sampler(sora):
    """6 steps; `simple` picks the exact timesteps for 10 and more, so the sigmas are given."""
    (patched,) = outputs(ForesightModelSamplingOpenSora.execute(sora, 48, 48, 17))
    pos, neg = outputs(ForesightOpenSoraConditioning.execute([[ref.caption()[:1], text("", 9)[0][1]]], 24, 48, 48))
    r = flow_shift(48, 48, 17)
    sigmas = torch.tensor([r * t / (1 + (r - 1) * t) for t in (1 - i / 6 for i in range(7))])
    got = sample(patched, named("sz", 1, 4, 5, 6, 6), pos, neg, 7.0, 6, sigmas=sigmas)
    ref.assert_agrees(sora.model.process_latent_in(got), "rflow")


@pytest.mark.parametrize("steps", [10, 15, 20, 24, 25, 30, 40, 50, 60, 75, 100])
@pytest.mark.parametrize(
    "size", [(426, 240, 51, 2.419), (854, 480, 51, 4.843), (1280, 720, 102, 10.27), (512, 512, 1, 1.0)]
)
def test_simple_gives_open_soras_own_timesteps(sora, steps, size):
    (patched,) = outputs(ForesightModelSamplingOpenSora.execute(sora, *size[:3]))
    r = flow_shift(*size[:3])
    assert r == pytest.approx(size[3], abs=2e-3)
    want = [r * t / (1 + (r - 1) * t) for t in (1 - i / steps for i in range(steps + 1))]
    sampling = patched.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    assert torch.allclose(sigmas, torch.tensor(want), atol=1e-6)
    assert torch.allclose(sampling.timestep(sigmas), 1000 * sigmas)


def test_latte_has_its_linear_betas(latte):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, 0)
    want = ((1 - alphas) / alphas).sqrt()
    got = latte.get_model_object("model_sampling").sigmas.double()
    assert ((got - want) / want).abs().max() < 1e-6


def test_euler_over_the_references_timesteps_is_ddim(latte):
    """DDIM without noise at t = 900, 800, ... 0, guided by 7.5; the last step goes to no noise at all."""
    noise, steps, cfg = named("lz", 1, 4, 3, 8, 8), 10, 7.5
    pos, neg = outputs(ForesightLatteConditioning.execute(text("prompt", 7), text("empty", 1)))
    network, timesteps = ref.latte(), list(range(900, -1, -100))
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
    x = noise.clone()
    for i, t in enumerate(timesteps):
        a, b = alphas[t], alphas[timesteps[i + 1]] if i + 1 < steps else torch.tensor(1.0)
        guided, unguided = (network(x, torch.tensor([float(t)]), c[0][0]) for c in (pos, neg))
        epsilon = unguided + cfg * (guided - unguided)
        x = b.sqrt() * (x - (1 - a).sqrt() * epsilon) / a.sqrt() + (1 - b).sqrt() * epsilon
    want = latte.model.process_latent_out(x)

    sampling = latte.get_model_object("model_sampling")
    sigmas = torch.cat((sampling.sigmas[timesteps], torch.zeros(1)))
    # ComfyUI starts at sigma times the noise, DDIM at the noise itself: the same but for sqrt(1 + sigma^2)
    start = noise * (1 + sigmas[0] ** 2).sqrt() / sigmas[0]
    got = sample(latte, start, pos, neg, cfg, steps, sigmas=sigmas)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


# ---- guidance


def _calls(patcher, noise, pos, neg):
    """(batch, tokens of text) of each call of the network in one step."""
    seen = []
    network = patcher.model.diffusion_model
    handle = network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0].shape[0], kwargs["context"].shape[1])), with_kwargs=True
    )
    sample(patcher, noise, pos, neg, 4.0, 1)
    handle.remove()
    return seen


def test_both_conds_are_one_call_without_padding(latte, sora):
    noise = named("z", 1, 4, 2, 4, 4)
    pos, neg = outputs(ForesightLatteConditioning.execute(text("prompt", 7), text("empty", 1)))
    assert _calls(latte, noise, pos, neg) == [(2, 7)]
    assert _calls(latte, noise, text("prompt", 7), text("empty", 1)) == [(1, 7), (1, 1)]
    pos, neg = outputs(ForesightOpenSoraConditioning.execute(text("prompt", 7), 24, 0, 0))
    assert _calls(sora, noise, pos, neg) == [(2, 7)]


def test_longer_prompts_are_cut_to_what_the_models_know(latte, sora):
    noise = named("z", 1, 4, 1, 4, 4)
    pos, neg = outputs(ForesightLatteConditioning.execute(text("long", 200, 256), text("empty", 1, 256)))
    assert _calls(latte, noise, pos, neg) == [(2, 120)]
    assert _calls(latte, noise, text("long", 200, 256), text("long", 200, 256)) == [(2, 120)]


def test_conditioning_without_a_mask_is_refused():
    bare = [[named("prompt", 1, 7, 32), {}]]
    for node in (ForesightLatteConditioning, ForesightOpenSoraConditioning):
        with pytest.raises(ValueError, match="positive conditioning says nothing of its padding.*type mochi"):
            node.execute(bare, text("empty", 1)) if node is ForesightLatteConditioning else node.execute(bare, 24, 0, 0)
    with pytest.raises(ValueError, match="has 2 entries"):
        ForesightLatteConditioning.execute(text("a", 3) + text("b", 3), text("empty", 1))
    with pytest.raises(ValueError, match="has 4 rows, fewer than the positive's 7"):
        ForesightLatteConditioning.execute(text("a", 7), text("empty", 1, 4))


# ---- files


def test_settings_come_from_the_shapes(files):
    sd = safetensors.torch.load_file(files["open_sora"])
    more = {"mlp_ratio": 4.0, "in_channels": 4, "pred_sigma": True, "patch_size": (1, 2, 2), "qk_norm": True}
    assert loading._open_sora_config(sd) == {**ref.OPEN_SORA, **more}


@pytest.mark.parametrize(
    ("load", "file", "message"),
    [
        ("load_latte", "open_sora", "is not Latte-1. It looks like Open-Sora 1.2: load it with Load Open-Sora 1.2"),
        ("load_open_sora", "latte", "is not Open-Sora 1.2. It looks like Latte-1: load it with Load Latte"),
        ("load_latte_vae", "latte", "is not a Stable Diffusion 1 VAE.*looks like Latte-1"),
        ("load_open_sora_vae", "latte", "is not the Open-Sora 1.2 VAE.*looks like Latte-1"),
    ],
)
def test_a_wrong_file_is_named(files, load, file, message):
    with pytest.raises(loading.WrongFile, match=message):
        getattr(loading, load)(files[file])


@pytest.mark.parametrize(
    ("keys", "looks"),
    [
        ({"blocks.0.lora_up.weight": (4, 4)}, "a LoRA"),
        ({"first_stage_model.decoder.conv_in.weight": (4, 4)}, "a checkpoint with its VAE"),
        ({"something": (4, 4)}, "No known model has its keys"),
    ],
)
def test_other_files_are_named(tmp_path, keys, looks):
    path = str(tmp_path / "other.safetensors")
    safetensors.torch.save_file({key: torch.zeros(shape) for key, shape in keys.items()}, path)
    with pytest.raises(loading.WrongFile, match=looks):
        loading.load_latte(path)


def test_a_core_models_file_is_named(tmp_path):
    from support.comfy_models import wan

    path = str(tmp_path / "wan.safetensors")
    sd = wan().patcher.model.diffusion_model.state_dict()
    safetensors.torch.save_file({key: value.contiguous().clone() for key, value in sd.items()}, path)
    with pytest.raises(loading.WrongFile, match="looks like a wan2.1 model: load it with Load Diffusion Model"):
        loading.load_open_sora(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop("proj_out.bias"), "misses proj_out.bias"),
        (lambda sd: sd.update(extra=torch.zeros(1)), "has unknown extra"),
        (lambda sd: sd.update({"proj_out.bias": torch.zeros(5)}), "has other shapes for proj_out.bias"),
    ],
)
def test_an_incomplete_file_is_refused(files, tmp_path, change, message):
    sd, path = safetensors.torch.load_file(files["latte"]), str(tmp_path / "broken.safetensors")
    change(sd)
    safetensors.torch.save_file(sd, path, HEADS)
    with pytest.raises(loading.WrongFile, match=message):
        loading.load_latte(path)


def test_heads_that_nobody_says_are_refused(files, tmp_path):
    path = str(tmp_path / "no_config.safetensors")
    safetensors.torch.save_file(safetensors.torch.load_file(files["latte"]), path)
    with pytest.raises(loading.WrongFile, match="48 channels do not divide into heads of 72"):
        loading.load_latte(path)


def test_dtypes_of_the_loader(files):
    patcher = loading.load_latte(files["latte"], common.DTYPES["fp8_e4m3fn"])
    assert patcher.model.get_dtype() == torch.float8_e4m3fn
    pos, neg = outputs(ForesightLatteConditioning.execute(text("prompt", 7), text("empty", 1)))
    assert torch.isfinite(sample(patcher, named("z", 1, 4, 2, 4, 4), pos, neg, 4.0, 2)).all()


# ---- what ComfyUI does to models


def _inputs(name):
    if name == "latte":
        return outputs(ForesightLatteConditioning.execute(text("prompt", 7), text("empty", 1)))
    return outputs(ForesightOpenSoraConditioning.execute(text("prompt", 7), 24, 0, 0))


@pytest.mark.parametrize("name", ["latte", "open_sora"])
def test_a_lora_changes_the_video_and_is_gone_after(request, name):
    patcher = request.getfixturevalue("latte" if name == "latte" else "sora")
    noise, conds = named("z", 1, 4, 3, 4, 4), _inputs(name)
    block = "transformer_blocks.1.attn1.to_q" if name == "latte" else "temporal_blocks.1.attn.proj"
    lora = {f"diffusion_model.{block}.lora_{k}.weight": named(k, *s) for k, s in (("down", (2, 48)), ("up", (48, 2)))}
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    before = sample(patcher, noise, *conds, 4.0, 2)
    assert not torch.allclose(before, sample(patched, noise, *conds, 4.0, 2), atol=1e-2)
    assert torch.equal(before, sample(patcher, noise, *conds, 4.0, 2))


@pytest.mark.parametrize("name", ["latte", "open_sora"])
def test_with_40_percent_of_the_weights_loaded_the_video_is_the_same(files, name):
    load = loading.load_latte if name == "latte" else loading.load_open_sora
    noise, conds = named("z", 1, 4, 3, 4, 4), _inputs(name)
    want = sample(load(files[name], {"dtype": torch.float32}), noise, *conds, 4.0, 2)
    patcher = load(files[name], {"dtype": torch.float32}, disable_dynamic=True)
    real, budget = comfy.model_patcher.ModelPatcher.load, int(0.4 * patcher.model_size())
    streamed = []

    def short(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        real(self, device_to, budget, force_patch_weights)
        streamed.append(self.model.model_lowvram)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_patcher.ModelPatcher, "load", short)
        got = sample(patcher, noise, *conds, 4.0, 2)
    assert streamed and all(streamed)
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["latte", "open_sora"])
def test_foresight_reuses_both_conds_of_a_call(request, caplog, name):
    patcher = request.getfixturevalue("latte" if name == "latte" else "sora")
    noise, conds = named("z", 1, 4, 3, 4, 4), _inputs(name)
    plain = sample(patcher, noise, *conds, 4.0, 12)
    nothing = comfyui.apply_foresight(patcher, PaperConfig(threshold=1e-9))
    assert torch.equal(plain, sample(nothing, noise, *conds, 4.0, 12))
    caplog.set_level("INFO")
    much = comfyui.apply_foresight(patcher, PaperConfig(threshold=2.0, warmup_steps=2, sample_rows=0))
    fast = sample(much, noise, *conds, 4.0, 12)
    assert torch.isfinite(fast).all() and not torch.equal(fast, plain)
    assert [r.getMessage() for r in caplog.records if "Foresight left out" in r.getMessage()]
