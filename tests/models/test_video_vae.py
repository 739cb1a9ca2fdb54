"""The decoders against the fixture and against diffusers, through core's VAE Decode."""

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")
diffusers = pytest.importorskip("diffusers")

import safetensors.torch

import nodes
from models import loading, video_vae
from models.open_sora_config import latent_frames
from support import reference_weights as ref
from support.reference_weights import named

LATENT = (1, 4, 6, 4, 5)


def _temporal(**config) -> video_vae.TemporalDecoder:
    return ref.fill(video_vae.TemporalDecoder(filters=32, num_res_blocks=1, **config))


@pytest.fixture(scope="module")
def image_vae():
    torch.manual_seed(0)
    widths = (128, 256, 512, 512)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return diffusers.AutoencoderKL(**blocks, block_out_channels=widths, layers_per_block=2, latent_channels=4).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vae")


@pytest.fixture(scope="module")
def latte_vae(image_vae, folder):
    safetensors.torch.save_file(image_vae.state_dict(), folder / "image.safetensors")
    return loading.load_latte_vae(str(folder / "image.safetensors"))


@pytest.fixture(scope="module")
def sora_vae(image_vae, folder):
    sd = {f"spatial_vae.module.{key}": value for key, value in image_vae.state_dict().items()}
    sd |= {f"temporal_vae.{key}": value for key, value in _temporal().state_dict().items()}
    sd |= {"temporal_vae.encoder.conv_in.conv.weight": torch.zeros(1), "scale": torch.ones(1), "shift": torch.zeros(1)}
    safetensors.torch.save_file(sd, folder / "open_sora.safetensors")
    return loading.load_open_sora_vae(str(folder / "open_sora.safetensors"))


def decoded(vae, latent) -> torch.Tensor:
    """What core's VAE Decode gives: frames (T, H, W, 3) in [0, 1]."""
    with torch.inference_mode():
        return nodes.VAEDecode().decode(vae, {"samples": latent})[0]


def pixels(video: torch.Tensor) -> torch.Tensor:
    """A video (1, 3, T, H, W) in [-1, 1] as core's nodes have it."""
    return (video[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1)


def test_the_temporal_decoder_gives_what_the_reference_gives():
    ref.assert_agrees(_temporal()(named("vz", 1, 4, 5, 4, 4)), "tvae")


@torch.no_grad()
def test_latte_decodes_every_frame(latte_vae, image_vae):
    latent = named("frames", *LATENT)
    want = torch.stack([image_vae.decode(latent[:, :, t]).sample for t in range(LATENT[2])], 2)
    got = decoded(latte_vae, latent)
    assert got.shape == (6, 32, 40, 3)
    torch.testing.assert_close(got, pixels(want), rtol=0, atol=1e-4)


@torch.no_grad()
def test_latte_encodes_every_frame(latte_vae, image_vae):
    video = torch.rand((6, 32, 40, 3), generator=torch.Generator().manual_seed(1))
    want = image_vae.encode(video.movedim(-1, 1) * 2 - 1).latent_dist.mean
    got = latte_vae.encode(video)
    assert got.shape == LATENT
    # core's VAE samples around the mean
    assert (got[0].transpose(0, 1) - want).abs().mean() < 4 * image_vae.encode(
        video.movedim(-1, 1)
    ).latent_dist.std.mean()


@torch.no_grad()
def test_lattes_temporal_decoder_is_diffusers(folder):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    for key, value in theirs.named_parameters():
        if key.endswith("mix_factor"):
            value.fill_(0.4)
    safetensors.torch.save_file(theirs.state_dict(), folder / "temporal.safetensors")
    vae = loading.load_latte_vae(str(folder / "temporal.safetensors"))
    latent = named("temporal", 1, 4, 16, 3, 2)
    frames = latent[0].transpose(0, 1)
    parts = [theirs.decode(part, num_frames=len(part)).sample for part in frames.split(14)]
    want = torch.cat(parts).transpose(0, 1)[None]
    torch.testing.assert_close(decoded(vae, latent), pixels(want), rtol=0, atol=1e-4)
    with pytest.raises(RuntimeError, match="cannot encode"):
        vae.encode(torch.zeros(2, 16, 16, 3))


@torch.no_grad()
def test_open_sora_decodes_by_chunks_of_17_frames(sora_vae, image_vae):
    latent, temporal = named("chunks", 1, 4, 7, 3, 4), _temporal()
    mid = torch.cat([temporal(part) for part in latent.split(5, 2)], 2) / 0.18215
    assert mid.shape[2] == 17 + 5
    want = torch.stack([image_vae.decode(mid[:, :, t]).sample for t in range(22)], 2)
    torch.testing.assert_close(decoded(sora_vae, latent), pixels(want), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (17, 5), (51, 15), (102, 30), (204, 60), (408, 120), (26, 8)])
def test_17_frames_are_5_latent_frames(sora_vae, frames, latents):
    assert latent_frames(frames) == latents and video_vae.open_sora_frames(latents) == frames
    if frames < 30:
        assert decoded(sora_vae, torch.zeros(1, 4, latents, 2, 2)).shape == (frames, 16, 16, 3)


def test_tiled_decoding_gives_as_many_frames(sora_vae, latte_vae):
    for vae, latent in ((sora_vae, named("tiles", 1, 4, 7, 9, 2)), (latte_vae, named("tiles", 1, 4, 2, 9, 2))):
        with torch.inference_mode():
            tiled = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, 64, 16)[0]
        assert tiled.shape == (22 if vae is sora_vae else 2, 72, 16, 3) and torch.isfinite(tiled).all()


def test_open_soras_vae_says_that_it_only_decodes(sora_vae):
    with pytest.raises(RuntimeError, match="can only decode"):
        sora_vae.encode(torch.zeros(2, 16, 16, 3))


def test_memory_grows_with_the_frames_that_are_decoded_at_once(sora_vae):
    estimate = sora_vae.memory_used_decode
    assert estimate((1, 4, 60, 60, 106), torch.float32) < 1.5 * estimate((1, 4, 5, 60, 106), torch.float32)
