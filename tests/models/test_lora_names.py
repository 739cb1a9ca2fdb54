"""LoRA files as they are published, through ComfyUI's own LoRA code: the weights must be those of diffusers with it."""

import json

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")
diffusers = pytest.importorskip("diffusers")

import comfy.hooks
import comfy.lora
import comfy.sd
import safetensors.torch

from models import cogvideox, loading
from pack.nodes.demo import ForesightDemoModel
from support import reference_weights as ref
from support.reference_weights import fill, named

RANK = 2
DOWN_UP = ("lora_A.weight", "lora_B.weight")
PUBLISHED = {  # who writes such files: (what the name of a weight becomes, the names of the two matrices)
    "diffusers, finetrainers": (lambda name: f"transformer.{name}", DOWN_UP),
    "PEFT": (lambda name: f"base_model.model.{name}", DOWN_UP),
    "PEFT, state dict of the model": (lambda name: name, ("lora_A.default.weight", "lora_B.default.weight")),
    "diffusion-pipe": (lambda name: f"diffusion_model.{name}", DOWN_UP),
    "VideoX-Fun": (lambda name: "lora_unet__" + name.replace(".", "_"), ("lora_down.weight", "lora_up.weight")),
    "kohya": (lambda name: "lora_unet_" + name.replace(".", "_"), ("lora_down.weight", "lora_up.weight")),
    "OneTrainer": (lambda name: "lora_transformer_" + name.replace(".", "_"), ("lora_down.weight", "lora_up.weight")),
    "SimpleTuner, LyCORIS": (lambda name: "lycoris_" + name.replace(".", "_"), ("lora_down.weight", "lora_up.weight")),
}


def _cogvideox():
    pytest.importorskip("comfy.ldm.cogvideo", reason="this ComfyUI has no CogVideoX")
    config = {"num_attention_heads": 3, "attention_head_dim": 64, "num_layers": 3, "time_embed_dim": 24}
    return fill(diffusers.CogVideoXTransformer3DModel(**config, text_embed_dim=32, max_text_seq_length=6))


def _latte():
    config = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2, "cross_attention_dim": 48}
    config |= {"in_channels": 4, "out_channels": 8, "sample_size": 8, "patch_size": 2, "norm_type": "ada_norm_single"}
    more = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False}
    return fill(diffusers.LatteTransformer3DModel(**config, **more, caption_channels=32, video_length=3))


MODELS = {  # the reference whose module names a trainer sees, the loader, its metadata, our name of the reference's
    "CogVideoX": (_cogvideox, loading.load_cogvideox, {}, cogvideox.core_key),
    "Latte": (_latte, loading.load_latte, {"num_attention_heads": 4, "attention_head_dim": 12}, lambda key: key),
    "Open-Sora": (ref.open_sora, loading.load_open_sora, {}, lambda key: key),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """(reference, patcher, our name of a key)."""
    make, load, config, ours = MODELS[request.param]
    reference, path = make(), tmp_path_factory.mktemp("lora") / "model.safetensors"
    state_dict = {key: value for key, value in reference.state_dict().items() if key != "pos_embed.pos_embed"}
    safetensors.torch.save_file(state_dict, path, {"config": json.dumps(config)})
    return reference, load(str(path), {"dtype": torch.float32}), ours


def lora_of(reference, style):
    """A LoRA on every linear layer: (the file, {key of a weight: what is added to it})."""
    rename, (down, up) = PUBLISHED[style]
    file, added = {}, {}
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.Linear):
            a, b = named(f"{name} a", RANK, module.in_features), named(f"{name} b", module.out_features, RANK)
            file |= {f"{rename(name)}.{down}": a, f"{rename(name)}.{up}": b}
            added[f"{name}.weight"] = b @ a
    return file, added


def patched_weights(patcher):
    """{key: weight with the patches on it} of all weights that are patched."""
    state_dict = patcher.model.state_dict()
    return {
        key.removeprefix("diffusion_model."): comfy.lora.calculate_weight(patches, state_dict[key].clone(), key)
        for key, patches in patcher.patches.items()
    }


@pytest.mark.parametrize("style", PUBLISHED)
def test_every_weight_of_a_published_lora_is_found(model, style, caplog):
    reference, patcher, ours = model
    file, added = lora_of(reference, style)
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, file, 0.5, 0.0)
    weights = patched_weights(patched)
    assert not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]
    assert weights.keys() == {ours(key) for key in added} and len(weights) > 20
    for key, addend in added.items():
        want = reference.state_dict()[key] + 0.5 * addend
        torch.testing.assert_close(weights[ours(key)], want, rtol=1e-5, atol=1e-5)
    assert not patcher.patches


def test_a_lora_that_is_a_hook_is_found_too(model):
    reference, patcher, ours = model
    file, added = lora_of(reference, "diffusers, finetrainers")
    patched, _, hooks = comfy.hooks.load_hook_lora_for_models(patcher, None, file, 1.0, 0.0)
    (patches,) = patched.hook_patches.values()
    assert patches.keys() == {f"diffusion_model.{ours(key)}" for key in added}


def test_a_model_of_core_has_the_names_that_it_had(model):
    wan = ForesightDemoModel.execute().args[0].model
    ours, cores = comfy.lora.model_lora_keys_unet, comfy.lora.model_lora_keys_unet.__wrapped__
    assert ours(wan, {}) == cores(wan, {}) and not hasattr(cores, "__wrapped__")  # extended once, however many load
    given = {}
    assert ours(model[1].model, given) is given and cores(wan, {}).keys() & given.keys() == set()
    assert ours(wan) == cores(wan, {})  # nothing of the other model stayed
