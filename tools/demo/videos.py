"""Videos of the demo, side by side."""

from fractions import Fraction
from pathlib import Path

import numpy as np

SCALE = 6  # screen pixels per pixel of a 32x32 video
FPS = 8


def side_by_side(rows: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """Clips by prompt and setting to one labelled video (T, H, W, 3), uint8."""
    from PIL import Image, ImageDraw, ImageFont

    columns = list(next(iter(rows.values())))
    frames, height, width, _ = next(iter(next(iter(rows.values())).values())).shape
    cell_h, cell_w, gap, left, top = height * SCALE, width * SCALE, 8, 84, 30
    size = (left + len(columns) * (cell_w + gap), top + len(rows) * (cell_h + gap))
    size = (size[0] + size[0] % 2, size[1] + size[1] % 2)  # video codecs want even sides
    font = ImageFont.load_default(14)
    out = []
    for t in range(frames):
        image = Image.new("RGB", size, (24, 26, 30))
        draw = ImageDraw.Draw(image)
        for c, column in enumerate(columns):
            draw.text((left + c * (cell_w + gap) + 4, 7), column, fill=(230, 230, 230), font=font)
        for r, (prompt, clips) in enumerate(rows.items()):
            y = top + r * (cell_h + gap)
            draw.multiline_text((8, y + 8), prompt.replace(" ", "\n"), fill=(230, 230, 230), font=font, spacing=6)
            for c, column in enumerate(columns):
                frame = Image.fromarray((clips[column][t] * 255).round().astype(np.uint8))
                image.paste(frame.resize((cell_w, cell_h), Image.Resampling.NEAREST), (left + c * (cell_w + gap), y))
        out.append(np.asarray(image))
    return np.stack(out)


def write_mp4(path: Path, video: np.ndarray, loops: int = 4) -> None:
    """Video (T, H, W, 3), uint8, as H.264, shown `loops` times over (a second of film is too short to look at)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        for frame in np.concatenate([video] * loops):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, video: np.ndarray) -> None:
    """The same as an endless GIF."""
    from PIL import Image

    images = [Image.fromarray(frame).quantize(256) for frame in video]
    images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // FPS, loop=0)
