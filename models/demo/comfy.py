"""The bundled model as ComfyUI's classes: latent, network, and a stand-in for a VAE."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from . import codec, model


class DemoLatentFormat(comfy.latent_formats.LatentFormat):
    latent_channels = codec.CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = codec.FACTOR
    # the mean of a 2x2 square is channels 0..2, in the codec's colour basis
    latent_rgb_factors = (codec.BASIS.reshape(codec.CHANNELS, 4, 3).mean(dim=1)).tolist()


class _LocatedWan(comfy.model_base.WAN21):
    """Core's Wan 2.1 with the demo's coordinate channels as its concat conditioning."""

    def concat_cond(self, **kwargs) -> torch.Tensor:
        return model.coordinates(kwargs["noise"])


class DemoWan(comfy.supported_models.WAN21_T2V):
    """Core's Wan 2.1 configuration with the demo's latent and flow shift."""

    unet_config = {}
    sampling_settings = {"shift": model.SHIFT}
    latent_format = DemoLatentFormat

    def get_model(self, state_dict, prefix="", device=None) -> comfy.model_base.BaseModel:
        return _LocatedWan(self, device=device)


class DemoVAE:
    """The demo codec behind the two methods of a VAE that core's encode and decode nodes use."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Latent (B, 12, T, h, w) to images (B, T, 2h, 2w, 3)."""
        return codec.decode(samples.float().cpu())

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Frames (T, H, W, 3) of one video, or (B, T, H, W, 3), to a latent (B, 12, T, H/2, W/2)."""
        return codec.encode((pixels if pixels.ndim == 5 else pixels[None])[..., :3].float().cpu())


def build(unet_config: dict | None = None, state_dict: dict | None = None) -> comfy.model_base.BaseModel:
    """The bundled network with its weights; the benchmarks build another size of it from a config and weights."""
    config = DemoWan(unet_config or model.COMFY_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({})
    network.diffusion_model.load_state_dict(state_dict or model.load_state_dict())
    return network


def load(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The bundled model as a ModelPatcher.

    Args:
        disable_dynamic: For core: a patcher that loads whole layers.
    """
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(
        build(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load, ())  # core loads it again to train a LoRA, and for a second GPU
    return patcher
