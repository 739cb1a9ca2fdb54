"""Two videos side by side with figures below, as frames that can be posted as they are."""

import numpy as np
import torch

_PAPER, _INK, _FAINT = (24, 26, 30), (235, 235, 235), (170, 174, 180)
_TITLE, _FIRST, _OTHER = 0.027, 0.036, 0.021  # heights of letters, as shares of the picture's width
_MARGIN, _LEADING = 0.014, 1.45  # around each part, as a share of the width; line over letter


def comparison(
    plain: torch.Tensor, other: torch.Tensor, titles: tuple[str, str], lines: list[str], width: int
) -> np.ndarray:
    """A title above each of two videos, and lines of text below them, the first one large.

    A video that is small is enlarged by a whole number, so that its pixels stay what they are; a large one is reduced.

    Args:
        plain: Frames (T, H, W, 3) in [0, 1].
        other: The same shape.
        width: Of the picture, in pixels.

    Returns:
        (T, h, width, 3), uint8; both sides are even, as video codecs want them.
    """
    from PIL import Image

    margin, width = round(_MARGIN * width), width + width % 2
    room, (height, wide) = (width - 3 * margin) // 2, plain.shape[1:3]
    factor = room // wide or room / wide
    size = max(1, round(wide * factor)), max(1, round(height * factor))
    top = margin + round(_TITLE * width * _LEADING)
    paper = _paper(width, top + size[1] + margin, room, margin, titles, lines)
    frames = np.empty((len(plain), paper.height, width, 3), np.uint8)
    kind = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    for frame, *clips in zip(frames, plain, other, strict=True):
        for column, clip in enumerate(clips):
            image = Image.fromarray(clip.clamp(0, 1).mul(255).round().to(torch.uint8).numpy())
            left = margin + column * (room + margin) + (room - size[0]) // 2
            paper.paste(image.resize(size, kind), (left, top))
        frame[:] = np.asarray(paper)
    return frames


def _paper(width: int, below: int, room: int, margin: int, titles: tuple[str, str], lines: list[str]):
    """The picture without its videos; `below` is where the lines begin."""
    from PIL import Image, ImageDraw

    sizes = [round(share * width) for share in (_FIRST, *[_OTHER] * (len(lines) - 1))]
    height = below + round(sum(sizes) * _LEADING) + margin
    image = Image.new("RGB", (width, height + height % 2), _PAPER)
    draw = ImageDraw.Draw(image)
    for column, title in enumerate(titles):
        centre = margin + column * (room + margin) + room // 2, margin
        draw.text(centre, title, fill=_INK, font=_fitting(title, round(_TITLE * width), room), anchor="ma")
    for line, size, colour in zip(lines, sizes, (_INK, *[_FAINT] * len(lines)), strict=False):
        font = _fitting(line, size, width - 2 * margin)
        draw.text((width // 2, below), line, fill=colour, font=font, anchor="ma")
        below += round(size * _LEADING)
    return image


def _fitting(text: str, size: int, room: int):
    """The font in which a line is not wider than `room`, at most of this size."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    while font.getlength(text) > room and size > 1:  # letters are as wide as whole pixels: widths are no multiples
        size -= 1
        font = ImageFont.load_default(size)
    return font
