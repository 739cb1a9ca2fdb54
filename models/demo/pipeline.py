"""The bundled model in diffusers' stock Wan pipeline."""

import torch

from . import codec, model
from .model import FRAMES, HEIGHT, WIDTH
from .prompt import embed

SHAPE = (1, codec.CHANNELS, FRAMES, HEIGHT // codec.FACTOR, WIDTH // codec.FACTOR)  # of a latent
CFG = 4.0


class DemoPipeline:
    """Text to video. `transformer` is diffusers' `WanTransformer3DModel` with the bundled weights, on `device`."""

    def __init__(self, device: torch.device | str = "cpu"):
        import diffusers

        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=model.SHIFT)
        self._device = torch.device(device)
        self.transformer = model.load_diffusers().to(self._device)
        self.transformer.register_forward_pre_hook(_locate, with_kwargs=True)
        self._pipe = diffusers.WanPipeline(None, None, None, scheduler, self.transformer)
        self._pipe.set_progress_bar_config(disable=True)
        self.scheduler, self.components = scheduler, self._pipe.components

    def __call__(self, prompt: str, seed: int = 0, steps: int = 50) -> torch.Tensor:
        """A video (8, 32, 32, 3) in [0, 1]."""
        latent = self._pipe(
            prompt_embeds=embed([prompt]).to(self._device),
            negative_prompt_embeds=embed([""]).to(self._device),
            latents=torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)),
            num_inference_steps=steps,
            guidance_scale=CFG,
            output_type="latent",
            height=8 * SHAPE[-2],
            width=8 * SHAPE[-1],
            num_frames=4 * (FRAMES - 1) + 1,
        ).frames
        return codec.decode(latent)[0]


def _locate(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Give the transformer its coordinate channels, of which the stock pipeline knows nothing."""
    x = kwargs["hidden_states"]
    return args, {**kwargs, "hidden_states": torch.cat([x, model.coordinates(x)], dim=1)}
