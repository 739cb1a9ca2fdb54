"""Open-Sora 1.2 as a ComfyUI model: its latent, its flow shift, its conditioning and core's record of it."""

import math

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import comfy.supported_models_base
import torch

from . import common
from .open_sora import MAX_TEXT_TOKENS, STDiT3

FRAMES_PER_CHUNK, LATENTS_PER_CHUNK = 17, 5  # of the video VAE
SCALE, SHIFT = (3.85, 2.32, 2.33, 3.06), (-0.10, 0.34, 0.27, 0.98)  # of the latent's channels


def flow_shift(width: int, height: int, length: int) -> float:
    """r in t = r t' / (1 + (r - 1) t'): larger and longer videos spend more steps at high noise.

    Args:
        width: Pixels.
        height: Pixels.
        length: Frames.
    """
    latents = 1 if length == 1 else max(1, length // FRAMES_PER_CHUNK * LATENTS_PER_CHUNK)
    return math.sqrt(height * width / 512**2 * latents)


def latent_frames(length: int) -> int:
    """Latent frames of a video of `length` frames: 5 for every 17, and one for every 4 (or fewer) of the rest."""
    return length // FRAMES_PER_CHUNK * LATENTS_PER_CHUNK + math.ceil(length % FRAMES_PER_CHUNK / 4)


def set_flow_shift(sampling: comfy.model_sampling.ModelSamplingDiscreteFlow, shift: float) -> None:
    # of 6000 entries the scheduler "simple" picks the reference's very timesteps, for 10 to 100 steps
    sampling.set_parameters(shift=shift, timesteps=6000)


class OpenSoraLatent(comfy.latent_formats.LatentFormat):
    latent_channels = 4
    latent_dimensions = 3

    def __init__(self):
        self.scale = torch.tensor(SCALE).view(1, -1, 1, 1, 1)
        self.shift = torch.tensor(SHIFT).view(1, -1, 1, 1, 1)

    def process_in(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent - self.shift.to(latent)) / self.scale.to(latent)

    def process_out(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * self.scale.to(latent) + self.shift.to(latent)


class OpenSora(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=STDiT3)
        set_flow_shift(self.model_sampling, model_config.sampling_settings["shift"])

    def extra_conds(self, **kwargs) -> dict:
        """The text without its padding, whether it stands for the null caption, and the size of the video."""
        out = super().extra_conds(**kwargs)
        text, mask = kwargs.get("cross_attn"), kwargs.get("attention_mask")
        if text is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(common.without_padding(text, mask, MAX_TEXT_TOKENS))
        null = torch.full((1,), float(kwargs.get("null_caption", False)))
        out["null_caption"] = comfy.conds.CONDRegular(null)
        # not core's `width` and `height`: for a video those hold other dimensions of the latent
        for name, key in (("fps", "fps"), ("width", "video_width"), ("height", "video_height")):
            if kwargs.get(key):
                out[name] = comfy.conds.CONDConstant(float(kwargs[key]))
        return out


class OpenSoraConfig(comfy.supported_models_base.BASE):
    """Core's record of a model, for Open-Sora 1.2: rectified flow."""

    unet_extra_config = {}
    sampling_settings = {"shift": flow_shift(854, 480, 51)}  # until ModelSamplingOpenSora sets another
    latent_format = OpenSoraLatent
    memory_usage_factor = 0.5  # PixArt's, whose blocks these are
    supported_inference_dtypes = [torch.bfloat16, torch.float32]  # trained in bf16; fp16's range is smaller

    def get_model(self, state_dict, prefix="", device=None) -> OpenSora:
        return OpenSora(self, device=device)
