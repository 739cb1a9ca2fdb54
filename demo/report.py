"""Pictures and figures of the demo: videos side by side, the map of reused blocks, quality against the plain run."""

from fractions import Fraction
from pathlib import Path

import numpy as np

SCALE = 6  # screen pixels per pixel of a 32x32 video
FPS = 8


def psnr(plain: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over the whole clip; inf when equal."""
    mse = float(np.mean((plain.astype(np.float64) - other) ** 2))
    return float("inf") if mse == 0 else -10 * np.log10(mse)


def ssim(plain: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity, mean over the frames."""
    from skimage.metrics import structural_similarity

    return float(
        np.mean(
            [structural_similarity(a, b, channel_axis=-1, data_range=1.0) for a, b in zip(plain, other, strict=True)]
        )
    )


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


def block_map(path: Path, runs: dict[str, dict], title: str) -> None:
    """Blocks x evaluations of each run (RunStats.to_dict() by name).

    Reused, computed, and how close a computed one was.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    # colours that the colour-blind can tell apart
    reused, computed, close = (np.array(to_rgb(c)) for c in ("#1b6ca8", "#e9e9e4", "#e08214"))
    warmup = np.array(to_rgb("#bdbdb5"))
    fig, axes = plt.subplots(len(runs), 1, figsize=(11, 0.6 + 2.5 * len(runs)), squeeze=False, layout="constrained")
    for ax, (name, stats) in zip(axes[:, 0], runs.items(), strict=True):
        evaluations = stats["evaluations"]
        blocks = max(len(e["computed"]) for e in evaluations)
        image = np.ones((blocks, len(evaluations), 3))
        for x, e in enumerate(evaluations):
            for block in range(len(e["computed"])):
                share = e["reused"][block] / max(1, e["reused"][block] + e["computed"][block])
                ratio = e["ratio"][block]
                # a computed block takes on orange as delta nears gamma * lambda: 1 qualifies, 3 is far off
                near = 0.0 if ratio is None else float(np.clip((3 - ratio) / 2, 0, 1))
                base = warmup if e["kind"] == "warmup" else computed * (1 - near) + close * near
                image[block, x] = reused * share + base * (1 - share)
        ax.imshow(image, aspect="auto", origin="lower", interpolation="nearest")
        ax.set_xticks(np.arange(-0.5, len(evaluations)), minor=True)
        ax.set_yticks(np.arange(-0.5, blocks), minor=True)
        ax.grid(which="minor", color="white", linewidth=0.6)
        ax.tick_params(which="minor", length=0)
        ax.set_ylabel("block")
        speedup = stats["estimated_speedup"]
        ax.set_title(
            f"{name}: {stats['reused']} of {stats['total']} block calls reused ({stats['reuse_ratio']:.0%}), "
            "estimated speed-up " + ("?" if speedup is None else f"{speedup:.2f}x"),
            fontsize=10,
            loc="left",
        )
    axes[-1, 0].set_xlabel("evaluation")
    labels = {"warmup": warmup, "computed": computed, "computed, qualifies for reuse next": close, "reused": reused}
    legend = [Patch(color=color, label=label) for label, color in labels.items()]
    fig.legend(handles=legend, loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    fig.suptitle(title, fontsize=11, x=0.01, ha="left")
    fig.savefig(path, dpi=110)
    plt.close(fig)
