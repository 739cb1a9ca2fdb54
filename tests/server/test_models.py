"""Latte and Open-Sora in a real server: tiny random checkpoints through loader, prompt, sampler and decoder.

And FLUX, which stands for the models that Foresight knows nothing of.
"""

import io
import json
import os
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import av
import comfy.ldm.flux.model
import comfy.ops
import comfy.taesd.taesd
import safetensors.torch

from models.video_vae import TemporalDecoder
from support import reference_weights as ref
from support.comfy_networks import fill
from tools import hosts

# Stands for T5-XXL: the real one has 4.7 billion weights.
TEXT_ENCODER = '''
import torch
from comfy_api.latest import ComfyExtension, io


class Encoder:
    """As Load CLIP, type mochi: rows padded to 24, and a mask."""

    def tokenize(self, text, **kwargs):
        return text

    def encode_from_tokens_scheduled(self, text, **kwargs):
        count = len(text.split()) + 1
        rows = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(len(text)))
        return [[rows, {"attention_mask": (torch.arange(24) < count).int()[None]}]]


class TestTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="TestTextEncoder", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(Encoder())


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [TestTextEncoder]


async def comfy_entrypoint():
    return Extension()
'''


def flux(seed: int) -> dict:
    """The smallest network in which ComfyUI sees FLUX: some sizes it reads from the weights, others are given."""
    network = comfy.ldm.flux.model.Flux(
        **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 32, "hidden_size": 128},
        **{"mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56]},
        **{"theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []},
        **{"device": torch.device("cpu"), "dtype": torch.float32, "operations": comfy.ops.disable_weight_init},
    )
    fill(network, seed)
    # tamer than `fill` makes it, so that its outputs go on from step to step as those of a trained one do
    return {key: 0.6 * value for key, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    for folder in ("models/diffusion_models", "models/vae", "custom_nodes/text_encoder"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes/text_encoder/__init__.py").write_text(TEXT_ENCODER)

    heads = {"config": json.dumps({"num_attention_heads": 4, "attention_head_dim": 12})}
    models = base / "models/diffusion_models"
    safetensors.torch.save_file(ref.latte().state_dict(), models / "latte.safetensors", heads)
    safetensors.torch.save_file(ref.open_sora().state_dict(), models / "open_sora.safetensors")
    for seed, name in enumerate(("flux", "other_flux")):
        safetensors.torch.save_file(flux(seed), models / f"{name}.safetensors")

    torch.manual_seed(0)
    image = comfy.taesd.taesd.TAESD().state_dict()  # of the image VAEs that core knows, the one that is small
    safetensors.torch.save_file(image, base / "models/vae/image.safetensors")
    video = {f"spatial_vae.module.{key}": value for key, value in image.items()}
    temporal = ref.fill(TemporalDecoder(filters=32, num_res_blocks=1)).state_dict()
    video |= {f"temporal_vae.{key}": value for key, value in temporal.items()}
    safetensors.torch.save_file(video, base / "models/vae/open_sora_vae.safetensors")

    path, log = Path(os.environ["COMFYUI_PATH"]), base / "comfyui.log"
    with hosts.ComfyUI(path, log, base) as host:
        yield host


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def prompt_for(model, vae, conditioning, latent, sampling=(), foresight=None, steps=12):
    """An API prompt; `conditioning` makes 5 out of the prompts 3 and 4."""
    prompt = {
        "1": model,
        "2": node("TestTextEncoder"),
        "10": node("ForesightVideoCaption", text="A red Ball", clean=True, aesthetic_score=6.5, motion_score=0,
                   camera_motion=""),
        "3": node("CLIPTextEncode", clip=["2", 0], text=["10", 0]),
        "4": node("CLIPTextEncode", clip=["2", 0], text=""),
        "5": conditioning,
        "6": latent,
        "7": node("KSampler", model=["1", 0], positive=["5", 0], negative=["5", 1], latent_image=["6", 0], seed=1,
                  steps=steps, cfg=4.0, sampler_name="euler", scheduler="simple", denoise=1.0),
        "8": vae,
        "9": node("VAEDecode", samples=["7", 0], vae=["8", 0]),
        "11": node("CreateVideo", images=["9", 0], fps=8),
        "12": node("SaveVideo", video=["11", 0], filename_prefix="test", format="mp4", codec="h264"),
    }  # fmt: skip
    model = ["1", 0]
    if sampling:
        prompt["13"] = node("ForesightModelSamplingOpenSora", model=model, **dict(sampling))
        model = ["13", 0]
    if foresight is not None:
        more = {"warmup_steps": 0, "start_percent": 0, "end_percent": 1, "cache_device": "auto"}
        more |= {"cache_budget_gb": 0, "method": "paper"}
        prompt["14"] = node("ForesightApply", model=model, **more, **foresight)
        model = ["14", 0]
    prompt["7"]["inputs"]["model"] = model
    return prompt


def latte(**more):
    return prompt_for(
        node("ForesightLatteLoader", unet_name="latte.safetensors", weight_dtype="default"),
        node("ForesightLatteVAELoader", vae_name="image.safetensors"),
        node("ForesightLatteConditioning", positive=["3", 0], negative=["4", 0]),
        node("ForesightEmptyLatteLatent", width=64, height=80, length=5, batch_size=1),
        **more,
    )


def sora(**more):
    size = {"width": 72, "height": 64, "length": 18}
    return prompt_for(
        node("ForesightOpenSoraLoader", unet_name="open_sora.safetensors", weight_dtype="default"),
        node("ForesightOpenSoraVAELoader", vae_name="open_sora_vae.safetensors"),
        node("ForesightOpenSoraConditioning", positive=["3", 0], fps=24, width=0, height=0),
        node("ForesightEmptyOpenSoraLatent", **size, batch_size=1),
        sampling=size.items(),
        **more,
    )


def video(server, prompt):
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success"
    (saved,) = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    data = server.get("/view?" + "&".join(f"{key}={saved[key]}" for key in ("filename", "subfolder", "type")))
    return [frame.to_ndarray(format="rgb24") for frame in av.open(io.BytesIO(data)).decode(video=0)]


def images(*branches):
    """An API prompt with a line from loader to Save Latent for each branch: a model's name, and settings or None.

    Of the branch k, Foresight is node 10 k + 2, and the latent is saved by 10 k + 4.
    """
    prompt = {
        "1": node("TestTextEncoder"),
        "2": node("CLIPTextEncode", clip=["1", 0], text="a red ball"),
        "3": node("CLIPTextEncode", clip=["1", 0], text=""),
        "4": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    }
    sampling = {"seed": 1, "steps": 12, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampling |= {"positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    for k, (name, settings) in enumerate(branches, 1):
        loader, apply, sampler, saver = (f"{10 * k + i}" for i in range(1, 5))
        prompt[loader] = node("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")
        if settings is not None:
            prompt[apply] = node("ForesightApply", model=[loader, 0], **settings)
        prompt[sampler] = node("KSampler", model=[loader if settings is None else apply, 0], **sampling)
        prompt[saver] = node("SaveLatent", samples=[sampler, 0], filename_prefix="test")
    return prompt


def latent(server, entry, branch):
    (saved,) = entry["outputs"][f"{10 * branch + 4}"]["latents"]
    path = server.log.parent / "output" / saved["subfolder"] / saved["filename"]
    return safetensors.torch.load_file(path)["latent_tensor"]


def test_an_image_model_with_a_node_on_each_of_two_models_in_one_graph(server):
    much, checked = {"threshold": 2.0}, {"threshold": 2.0, "validate": True}
    branches = [("flux", None), ("flux", {"threshold": 0.0}), ("flux", {"threshold": 1e-12}), ("flux", much)]
    branches += [("flux", checked), ("other_flux", much), ("other_flux", None)]
    entry = server.run(images(*branches))
    plain, off, tiny, ours, validated, other, other_plain = (latent(server, entry, k) for k in range(1, 8))
    assert plain.shape == (1, 16, 8, 8) and plain.isfinite().all() and plain.std() > 0.1
    assert torch.equal(off, plain) and torch.equal(tiny, plain)
    assert torch.equal(validated, ours) and not torch.equal(ours, plain) and not torch.equal(other, other_plain)
    alone = server.run(images(("other_flux", much)))
    assert torch.equal(latent(server, alone, 1), other) and not torch.equal(other, ours)

    runs = json.loads(server.get("/foresight/runs"))
    runs = {run["node_id"]: run for run in runs if run["prompt_id"] == entry["prompt_id"]}
    assert set(runs) == {"32", "42", "52", "62"} and not runs["32"]["reused"]  # off leaves no trace
    for run in (runs[k] for k in ("42", "52", "62")):
        assert (run["counted"], run["total"]) == ("outputs", 12) and 0 < run["reused"] < 12
    left_out = [e["missed"] for e in runs["52"]["evaluations"] if sum(e["reused"])]
    assert len(left_out) == runs["42"]["reused"] == runs["52"]["reused"] and min(left_out) > 0
    log = server.log.read_text()
    assert "Flux is not among the models that were tested" in log
    assert not [line for line in log.splitlines() if re.search("error|exception|traceback", line, re.IGNORECASE)]


@pytest.mark.parametrize(("make", "frames", "size"), [(latte, 5, (80, 64)), (sora, 18, (64, 72))])
def test_a_video_of_all_frames(server, make, frames, size):
    plain = video(server, make())
    assert len(plain) == frames and plain[0].shape == (*size, 3)
    fast = video(server, make(foresight={"threshold": 2.0, "reuse_interval": 2}))
    assert len(fast) == frames
    run = json.loads(server.get("/foresight/runs"))[-1]
    assert run["reused"] > 0 and run["total"] == 12 * 4 * 2  # steps, blocks, conds: both in one call
    log = server.log.read_text()
    assert not [line for line in log.splitlines() if re.search("error|exception|traceback", line, re.IGNORECASE)]


def test_a_wrong_file_says_which_loader_to_use(server):
    prompt = latte()
    prompt["1"]["inputs"]["unet_name"] = "open_sora.safetensors"
    with pytest.raises(RuntimeError, match="looks like Open-Sora 1.2: load it with Load Open-Sora 1.2"):
        server.run(prompt)


def test_the_method_paper_says_which_method_takes_an_image_model(server):
    with pytest.raises(RuntimeError, match="does not support Flux .*Use the method forecast"):
        server.run(images(("flux", {"threshold": 0.5, "method": "paper"})))
