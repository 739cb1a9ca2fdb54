"""Loops that people write by hand around a transformer of diffusers, and that no pipeline of theirs has."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers

from foresight import ForecastConfig
from foresight.hosts.diffusers import apply_foresight
from support.diffusers_images import z_image
from support.diffusers_models import arguments, seeded
from support.diffusers_transformers import wan

STEPS = 30
TEXTS = [seeded(1, 6, 16, seed=i) for i in range(4)]


def kinds(stats):
    return "".join(e.kind[0] for e in stats.evaluations)


def run(loop, config=None, **options):
    """What a loop gives, plain or with Foresight, and the record."""
    net = wan().model
    handle = apply_foresight(net, config, steps=STEPS) if config else None
    with torch.no_grad():
        result = loop(net, **options)
    if handle:
        handle.remove()
    return result, handle and handle.stats


def check(loop, **options):
    """Its result is nearly the plain one, and the plain one where nothing may be left out."""
    plain, _ = run(loop, **options)
    ours, stats = run(loop, ForecastConfig(threshold=1.0), **options)
    assert (ours - plain).norm() < 0.05 * plain.norm()
    nothing, none = run(loop, ForecastConfig(threshold=1e-12), **options)
    assert torch.equal(nothing, plain) and not none.reused
    return stats


def velocity(net, x, t, text, context=None):
    net_arguments = arguments("wan", x, 1000 * t, text)
    if context is None:
        return net(**net_arguments)[0]
    with net.cache_context(context):
        return net(**net_arguments)[0]


def levels():
    even = torch.linspace(1, 0, STEPS + 1).tolist()
    shifted = [5 * t / (1 + 4 * t) for t in even]
    return list(zip(shifted[:-1], shifted[1:], strict=True))


def guidance_for_a_while(net, order, context):
    """Guidance between 20 % and 60 % of the run only; uncond may come first."""
    x = seeded(1, 4, 3, 8, 8, seed=5)
    for i, (now, after) in enumerate(levels()):
        names = order if 6 <= i < 18 else ["cond"]
        v = {n: velocity(net, x, now, TEXTS[n == "uncond"], n if context else None) for n in names}
        x = x + (after - now) * (v["cond"] if len(v) == 1 else v["uncond"] + 3 * (v["cond"] - v["uncond"]))
    return x


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("order", [["cond", "uncond"], ["uncond", "cond"]], ids=str)
def test_guidance_for_a_part_of_the_run(order, context):
    stats = check(guidance_for_a_while, order=order, context=context)
    assert len(stats.evaluations) == STEPS and "r" in kinds(stats)


def tiles(net, texts, widths=(8, 8)):
    """Two videos side by side, one call for each at every level."""
    parts = [seeded(1, 4, 3, 8, width, seed=5 + i) for i, width in enumerate(widths)]
    for now, after in levels():
        parts = [x + (after - now) * velocity(net, x, now, text) for x, text in zip(parts, texts, strict=True)]
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("widths", [(8, 8), (8, 4)])
@pytest.mark.parametrize("texts", [TEXTS[:2], [TEXTS[0]] * 2], ids=["two texts", "one text"])
def test_tiles(texts, widths):
    check(tiles, texts=texts, widths=widths)


def test_tiles_of_a_model_that_is_no_flow_model():
    """A panorama: tiles of one text that overlap, a call for each, cond and uncond stacked in it."""
    net = diffusers.UNet2DConditionModel(
        **{"block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 8, "norm_num_groups": 4},
        **{"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16},
        **{"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4},
    )
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.3
    downs, ups = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = diffusers.AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=4, **_blocks(downs, ups))
    pipe = diffusers.StableDiffusionPanoramaPipeline(
        **dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor")),
        **{"vae": vae, "unet": net, "requires_safety_checker": False},
        scheduler=diffusers.DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", None, False, False, 1),
    )
    pipe.set_progress_bar_config(disable=True)

    def made():
        noise = torch.Generator().manual_seed(0)
        text = {"prompt_embeds": TEXTS[1], "negative_prompt_embeds": TEXTS[2], "guidance_scale": 4.0}
        size = {"height": 64, "width": 1024, "num_inference_steps": 20}
        return pipe(generator=noise, **text, **size, output_type="latent", return_dict=False)[0]

    plain = made()
    handle = apply_foresight(net, ForecastConfig(threshold=1.0))
    ours = made()
    handle.remove()
    assert torch.equal(ours, plain) and not handle.stats.reused


def _blocks(downs, ups):
    return {"down_block_types": downs, "up_block_types": ups, "latent_channels": 4}


def z_image_by(net, joined):
    """Guidance as Z-Image's pipeline does it, with both conds in one list, or with a call for each."""
    x = seeded(4, 1, 8, 8, seed=5)
    for now, after in levels():
        t, (cond, uncond) = torch.tensor([1 - now]), ([text[0]] for text in TEXTS[:2])
        if joined:
            a, b = net([x, x.clone()], t.repeat(2), cond + uncond, return_dict=False)[0]
        else:
            a, b = (net([x], t, text, return_dict=False)[0][0] for text in (cond, uncond))
        x = x - (after - now) * (b + 4 * (a - b))
    return x


def test_conds_in_one_list_are_as_good_as_conds_in_calls_of_their_own():
    found = []
    for joined in (True, False):
        net = z_image().model
        for name, p in net.named_parameters():
            p.data *= 10 if "cap_embedder" in name else 3 if "attention" in name else 1  # the text has to matter
        with torch.no_grad():
            plain = z_image_by(net, joined)
            handle = apply_foresight(net, ForecastConfig(threshold=1.0), steps=STEPS)
            ours = z_image_by(net, joined)
        handle.remove()
        assert (ours - plain).norm() < 0.05 * plain.norm()
        found.append(kinds(handle.stats))
    assert found[0] == found[1] and "r" in found[0]


class GivesTextFirst(torch.nn.Module):
    """As a model that fills a cache of keys at first: its first output has the text's tokens too."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, hidden_states, timestep, mode="cached"):
        out = torch.tanh(self.scale * hidden_states)
        return (torch.cat([out[:, :3], out], 1) if mode == "extract" or timestep.item() == 1000 else out,)


@pytest.mark.parametrize("says", [True, False])
def test_a_first_output_of_another_shape(says):
    net = GivesTextFirst()

    def loop(config=None):
        handle = apply_foresight(net, config, steps=STEPS) if config else None
        x = seeded(1, 16, 8, seed=5)
        with torch.no_grad():
            for i, (now, after) in enumerate(levels()):
                mode = {"mode": "cached" if i else "extract"} if says else {}
                x = x + (after - now) * net(x, torch.tensor([1000 * now]), **mode)[0][:, -16:]
        if handle:
            handle.remove()
        return x, handle and handle.stats

    plain, _ = loop()
    ours, stats = loop(ForecastConfig(threshold=1.0))
    assert (ours - plain).norm() < 0.05 * plain.norm() and stats.reused and not stats.inactive


def two_prompts(net, texts):
    """Videos of two prompts in one batch, from the same noise; each cond in a call of its own."""
    x = seeded(1, 4, 3, 8, 8, seed=5).repeat(2, 1, 1, 1, 1)
    for now, after in levels():
        cond, uncond = (velocity(net, x, now, torch.cat(t), name) for name, t in texts.items())
        x = x + (after - now) * (uncond + 3 * (cond - uncond))
    return x


def test_prompts_that_begin_with_the_same_noise_decide_together():
    found = []
    for order in (1, -1):
        stats = check(two_prompts, texts={"cond": TEXTS[:2][::order], "uncond": TEXTS[2:][::order]})
        found.append(kinds(stats))
    assert found[0] == found[1] and "r" in found[0]


def test_arguments_that_are_written_in_place():
    text, t = torch.zeros(1, 6, 16), torch.zeros(1)

    def loop(net, copies):
        x = seeded(1, 4, 3, 8, 8, seed=5)
        for now, after in levels():
            v = []
            for cond in TEXTS[:2]:
                given = arguments("wan", x, 1000 * now, cond)
                if not copies:
                    given |= {"timestep": t.copy_(given["timestep"]), "encoder_hidden_states": text.copy_(cond)}
                v.append(net(**given)[0])
            x = x + (after - now) * (v[1] + 3 * (v[0] - v[1]))
        return x

    assert kinds(check(loop, copies=False)) == kinds(check(loop, copies=True))
