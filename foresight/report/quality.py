"""How close one video is to another: PSNR and SSIM, frame by frame."""

import torch

WINDOW = 7  # pixels; SSIM's uniform window, scikit-image's default


def check_same_shape(plain: torch.Tensor, other: torch.Tensor) -> None:
    """Raise a ValueError that names both shapes if two videos cannot be compared."""
    if plain.shape != other.shape:
        names = [f"{s[0]} frames of {s[2]}x{s[1]}" for s in (plain.shape, other.shape)]
        raise ValueError(
            f"the plain video has {names[0]}, the other {names[1]}: both must have the same length and size"
        )


def check_finite(**videos: torch.Tensor) -> None:
    """Raise a ValueError that names a video with a pixel that is no number: every figure of it would be none."""
    for name, video in videos.items():
        if not video.isfinite().all():
            raise ValueError(
                f"the {name} video has pixels that are NaN or infinite: its sampling or decoding went wrong"
            )


def psnr(plain: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each frame.

    Args:
        plain: Frames (T, H, W, C) in [0, 1].
        other: The same shape.

    Returns:
        (T,), dB, fp64; inf where two frames are equal.

    Raises:
        ValueError: the shapes differ, or a pixel is NaN or infinite.
    """
    check_same_shape(plain, other)
    check_finite(plain=plain, other=other)
    squares = [(a.double() - b.double()).square().mean() for a, b in zip(plain, other, strict=True)]
    return -10 * torch.stack(squares).log10()


def mean_psnr(plain: torch.Tensor, other: torch.Tensor) -> float:
    """PSNR of a whole video, from the mean squared error over all frames, as the caches' authors give it."""
    errors = 10 ** (-psnr(plain, other) / 10)
    return float(-10 * errors.mean().log10())


def ssim(plain: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each frame (Wang et al. 2004) with a uniform 7x7 window, mean over channels.

    The same as scikit-image's default with `data_range=1`: sample covariances, the border of three pixels left out.

    Args:
        plain: Frames (T, H, W, C) in [0, 1].
        other: The same shape.

    Returns:
        (T,), fp64.

    Raises:
        ValueError: the shapes differ, or a side is under 7 pixels.
    """
    check_same_shape(plain, other)
    if min(plain.shape[1:3]) < WINDOW:
        raise ValueError(f"frames of {plain.shape[2]}x{plain.shape[1]}: SSIM needs {WINDOW} pixels each way")
    return torch.stack([_ssim(a.double(), b.double()) for a, b in zip(plain, other, strict=True)])


def _ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.movedim(-1, 0), b.movedim(-1, 0)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (
        torch.nn.functional.avg_pool2d(x, WINDOW, stride=1) for x in (a, b, a * a, b * b, a * b)
    )
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_a, var_b = (mean_aa - mean_a**2) * unbiased, (mean_bb - mean_b**2) * unbiased
    covariance = (mean_ab - mean_a * mean_b) * unbiased
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()
