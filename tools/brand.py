"""`python -m tools.brand`: draws the pack's icon and banner for the registry, docs/img/icon.png and banner.png."""

from PIL import Image, ImageDraw, ImageFont

from tools import hosts

FOLDER = hosts.ROOT / "docs" / "img"
FINE = 4  # drawn this much larger, then made smaller: smooth edges
NIGHT, WORDS, QUIET = "#171a20", "#ffffff", "#aab2bd"
COMPUTED, FORECAST = "#d6d6ce", "#4ba3e3"  # as on the node's map
HEIGHTS = (0.34, 0.40, 0.47, 0.55, 0.64, 0.74, 0.86, 1.0)  # share of the way that a step covers: it grows
COMPUTES = (True, False, True, False, False, True, False, True)


def strip(draw: ImageDraw.ImageDraw, left: float, top: float, width: float, height: float) -> None:
    """Evaluations as columns: full ones are computed, outlined ones forecast."""
    pitch = width / len(HEIGHTS)
    for k, (share, computed) in enumerate(zip(HEIGHTS, COMPUTES, strict=True)):
        box = left + k * pitch, top + (1 - share) * height, left + (k + 0.72) * pitch, top + height
        line = max(1, round(pitch * 0.09))
        draw.rounded_rectangle(box, pitch * 0.14, fill=COMPUTED if computed else None,
                               outline=COMPUTED if computed else FORECAST, width=line)  # fmt: skip


def icon(size: int = 400) -> Image.Image:
    """A square with round corners, (size, size)."""
    large = size * FINE
    image = Image.new("RGBA", (large, large))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, large - 1, large - 1), large * 0.2, fill=NIGHT)
    strip(draw, large * 0.18, large * 0.24, large * 0.685, large * 0.52)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    """Name, promise and columns, in the registry's 21 : 9."""
    image = Image.new("RGB", (width * FINE, height * FINE), NIGHT)
    draw = ImageDraw.Draw(image)
    left = 0.065 * width * FINE
    for text, size, top, colour in (
        ("Foresight", 0.23, 0.24, WORDS),
        ("The same video, sooner.", 0.085, 0.54, WORDS),
        ("Left-out steps are forecast. Any model, no training.", 0.052, 0.68, QUIET),
    ):
        draw.text((left, top * height * FINE), text, fill=colour, font=ImageFont.load_default(size * height * FINE))
    strip(draw, 0.62 * width * FINE, 0.24 * height * FINE, 0.33 * width * FINE, 0.53 * height * FINE)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    for name, image in (("icon", icon()), ("banner", banner())):
        image.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
