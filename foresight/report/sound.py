"""How close one sound is to another: their log-mel spectrograms, and how loud they are."""

import math

import torch

MELS, WINDOW = 64, 1024  # bands, and samples of a window
QUIET = 1e-10  # power below which a band counts as silent, -100 dB


def log_mel_distance(plain: torch.Tensor, other: torch.Tensor, rate: int) -> float:
    """Root of the mean squared difference of two log-mel power spectrograms, in dB, over channels, bands and time.

    Args:
        plain: (..., samples) in [-1, 1].
        other: The same shape.
        rate: Samples a second.

    Raises:
        ValueError: the shapes differ, or there are fewer samples than a window has.
    """
    check_same_sound(plain, other)
    from torchaudio.transforms import MelSpectrogram  # beside ComfyUI; importing it takes its time

    mel = MelSpectrogram(rate, n_fft=WINDOW, n_mels=MELS)
    levels = [10 * mel(x.float()).clamp_min(QUIET).log10() for x in (plain, other)]
    return float((levels[0] - levels[1]).square().mean().sqrt())


def rms_ratio(plain: torch.Tensor, other: torch.Tensor) -> float:
    """Loudness of `other` over that of `plain`; 1 where both are silent, inf where only `plain` is."""
    a, b = (float(x.float().square().mean().sqrt()) for x in (plain, other))
    return b / a if a else math.inf if b else 1.0


def check_same_sound(plain: torch.Tensor, other: torch.Tensor) -> None:
    """Raise a ValueError that names both shapes if two sounds cannot be compared."""
    if plain.shape != other.shape:
        raise ValueError(
            f"the plain sound has {plain.shape[-1]} samples in {_channels(plain)}, the other {other.shape[-1]} in "
            f"{_channels(other)}: both must have the same length and channels"
        )
    if plain.shape[-1] < WINDOW:
        raise ValueError(f"{plain.shape[-1]} samples: a sound needs at least {WINDOW} to be compared")


def _channels(sound: torch.Tensor) -> str:
    count = math.prod(sound.shape[:-1])
    return "1 channel" if count == 1 else f"{count} channels"
