"""Plots as images: what a run computed, and curves over frames. Matplotlib where it is installed, else Pillow."""

from textwrap import shorten

import numpy as np

from .strip import ERRORS, GAP, MOST, Column, columns

# colours that the colour-blind can tell apart; the map on the node has the same
REUSED, COMPUTED, CLOSE, WARMUP = (27, 108, 168), (214, 214, 206), (224, 130, 20), (160, 160, 151)
LEGEND = {"warmup": WARMUP, "computed": COMPUTED, "close to reuse": CLOSE, "reused": REUSED}
STRIP_LEGEND = {
    "computed": COMPUTED,
    "left out": REUSED,
    "predicted error (line: limit)": CLOSE,
    "real error": (40, 40, 40),
}
FAINT = 0.35  # of what is planned and was not reached
MOST_RUNS = 16  # in one picture, which takes a quarter of a second for each of them
CURVES = ("#1b6ca8", "#e08214")
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def run_map(runs: dict[str, dict], title: str) -> np.ndarray:
    """What each run computed, one below the other: blocks x evaluations, or a strip of evaluations (`strip`).

    Args:
        runs: `RunStats.to_dict()` by name.

    Returns:
        (H, W, 3), uint8.
    """
    shown = dict(list(runs.items())[-MOST_RUNS:])
    title = title if len(shown) == len(runs) else f"{title} (the newest {len(shown)} of {len(runs)} runs)"
    panels = {f"{name}: {_headline(run)}": _panel(run) for name, run in shown.items()}
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return _map_pillow(panels, title)
    return _map_matplotlib(panels, title)


def _panel(run: dict) -> np.ndarray | list[Column]:
    return cells(run["evaluations"]) if run["counted"] == "block calls" else columns(run)


def _legend(panels: dict[str, np.ndarray | list[Column]]) -> dict[str, tuple[int, int, int]]:
    strips = [isinstance(panel, list) for panel in panels.values()]
    return {**({} if all(strips) else LEGEND), **(STRIP_LEGEND if any(strips) else {})}


def _colour(column: Column) -> tuple[int, ...]:
    colour, share = np.array(REUSED if column.left_out else COMPUTED), 1.0 if column.reached else FAINT
    return tuple(int(v) for v in colour * share + np.array(_PAPER) * (1 - share))


def cells(evaluations: list[dict]) -> np.ndarray:
    """Colour (blocks, evaluations, 3), 0..255, of block calls: reused, computed, and how close a computed one was."""
    blocks = max((len(e["computed"]) for e in evaluations), default=0)
    image = np.full((blocks, len(evaluations), 3), _PAPER, dtype=float)
    for x, e in enumerate(evaluations):
        for block in range(len(e["computed"])):
            share = e["reused"][block] / max(1, e["reused"][block] + e["computed"][block])
            ratio = e["ratio"][block]
            # what was computed takes on orange as it nears the limit: 1 could have been left out, 3 is far off
            near = 0.0 if ratio is None else float(np.clip((3 - ratio) / 2, 0, 1))
            base = np.array(COMPUTED) * (1 - near) + np.array(CLOSE) * near
            if e["kind"] == "warmup":
                base = np.array(WARMUP)
            image[block, x] = np.array(REUSED) * share + base * (1 - share)
    return image


def curves(panels: dict[str, dict[str, list[float]]], xlabel: str) -> np.ndarray:
    """Curves over frames, one panel below the other: {panel title: {name: values}}. Infinite values are left out.

    Returns:
        (H, W, 3), uint8.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return _curves_pillow(panels, xlabel)
    return _curves_matplotlib(panels, xlabel)


def note(text: str) -> np.ndarray:
    """A line of text as an image (H, W, 3), uint8, where there is nothing to plot."""
    from PIL import Image, ImageDraw

    font = _font(16)
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    image = Image.new("RGB", (int(right - left) + 48, int(bottom - top) + 48), _PAPER)
    ImageDraw.Draw(image).multiline_text((24 - left, 24 - top), text, fill=_INK, font=font)
    return np.asarray(image)


def _headline(run: dict) -> str:
    speedup = "?" if run["estimated_speedup"] is None else f"{run['estimated_speedup']:.2f}x"
    line = f"{run['reused']} of {run['total']} {run['counted']} left out ({run['reuse_ratio']:.0%})"
    line += f", estimated speed-up {speedup}"
    line += f", planned {run['steps'] / max(1, run['planned']):.2f}x" if run["planned"] is not None else ""
    return f"{line}\n{shorten('inactive: ' + run['inactive'], 140)}" if run["inactive"] else line


def _figure(width: float, height: float):
    # without pyplot, which keeps figures and a backend for the whole process
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _pixels(canvas) -> np.ndarray:
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _map_matplotlib(panels: dict[str, np.ndarray], title: str) -> np.ndarray:
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    figure, canvas = _figure(11, 0.6 + 2.5 * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (headline, panel) in zip(axes, panels.items(), strict=True):
        (_strip_matplotlib if isinstance(panel, list) else _cells_matplotlib)(ax, panel)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_title(headline, fontsize=10, loc="left")
    axes[-1].set_xlabel("evaluation")
    legend = [Patch(color=np.array(color) / 255, label=label) for label, color in _legend(panels).items()]
    figure.legend(handles=legend, loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return _pixels(canvas)


def _cells_matplotlib(ax, image: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.imshow(image / 255, aspect="auto", origin="lower", interpolation="nearest")
    ax.set_xticks(np.arange(-0.5, image.shape[1]), minor=True)
    ax.set_yticks(np.arange(-0.5, image.shape[0]), minor=True)
    ax.grid(which="minor", color="white", linewidth=0.6)
    ax.tick_params(which="minor", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_ylabel("block")


def _strip_matplotlib(ax, panel: list[Column]) -> None:
    bottom = ERRORS + GAP
    for x, column in enumerate(panel):
        ax.bar(x, column.height * (1 - bottom), 0.9, bottom=bottom, color=np.array(_colour(column)) / 255)
        if column.predicted is not None:
            ax.bar(x, ERRORS * min(column.predicted, MOST) / MOST, 0.9, color=np.array(CLOSE) / 255)
        if column.real is not None:
            ax.plot(x, ERRORS * min(column.real, MOST) / MOST, ".", color=np.array(_INK) / 255)
    ax.axhline(ERRORS / MOST, color=np.array(_INK) / 255, linewidth=0.7)
    ax.set_xlim(-0.6, max(1, len(panel)) - 0.4)
    ax.set_ylim(0, 1.02)
    ax.set_yticks([ERRORS / 2, (1 + bottom) / 2], ["error", "share of\nthe way"])
    ax.tick_params(axis="y", length=0)


def _curves_matplotlib(panels: dict[str, dict[str, list[float]]], xlabel: str) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator

    figure, canvas = _figure(9, 2.4 * len(panels) + 0.3)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        for (name, values), color in zip(lines.items(), CURVES, strict=False):
            y = np.where(np.isfinite(values), values, np.nan)
            ax.plot(range(len(values)), y, marker=".", color=color, label=name)
        ax.set_title(title, fontsize=10, loc="left")
        ax.grid(alpha=0.3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(lines) > 1:
            ax.legend(fontsize=8)
    axes[-1].set_xlabel(xlabel)
    return _pixels(canvas)


# ---- Pillow

_WIDTH, _LEFT, _RIGHT = 1210, 60, 16


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _map_pillow(panels: dict[str, np.ndarray], title: str) -> np.ndarray:
    from PIL import Image, ImageDraw

    plot, gap = 200, 75
    image = Image.new("RGB", (_WIDTH, 72 + len(panels) * (plot + gap) - 30), _PAPER)
    draw, font, small = ImageDraw.Draw(image), _font(16), _font(13)
    draw.text((12, 8), title, fill=_INK, font=font)
    legend = _legend(panels)
    x = _WIDTH - _RIGHT - sum(24 + draw.textlength(label, small) + 14 for label in legend)
    for label, color in legend.items():
        draw.rectangle((x, 12, x + 16, 24), fill=color, outline=_INK)
        draw.text((x + 22, 10), label, fill=_INK, font=small)
        x += 24 + draw.textlength(label, small) + 14
    for p, (headline, panel) in enumerate(panels.items()):
        top = 72 + p * (plot + gap)
        draw.text((_LEFT, top - 8), headline, fill=_INK, font=small, anchor="ld")
        (_strip_pillow if isinstance(panel, list) else _cells_pillow)(draw, panel, top, plot, small)
        count = len(panel) if isinstance(panel, list) else panel.shape[1]
        width = (_WIDTH - _LEFT - _RIGHT) / max(1, count)
        for column in _ticks(count):
            draw.text((_LEFT + (column + 0.5) * width, top + plot + 4), str(column), fill=_INK, font=small, anchor="mt")
    draw.text((_WIDTH / 2, image.height - 8), "evaluation", fill=_INK, font=small, anchor="mb")
    return np.asarray(image)


def _cells_pillow(draw, colors: np.ndarray, top: int, plot: int, font) -> None:
    rows, count = colors.shape[:2]
    height, width = plot / max(1, rows), (_WIDTH - _LEFT - _RIGHT) / max(1, count)
    line = 1 if min(width, height) >= 5 else 0
    for row in range(rows):
        for column in range(count):
            x, y = _LEFT + column * width, top + plot - (row + 1) * height
            box = (round(x), round(y), round(x + width) - 1 - line, round(y + height) - 1 - line)
            draw.rectangle(box, fill=tuple(int(v) for v in colors[row, column]))
    for row in _ticks(rows):
        draw.text((_LEFT - 8, top + plot - (row + 0.5) * height), str(row), fill=_INK, font=font, anchor="rm")
    draw.text((6, top - 8), "block", fill=_INK, font=font, anchor="ld")


def _strip_pillow(draw, panel: list[Column], top: int, plot: int, font) -> None:
    width, floor = (_WIDTH - _LEFT - _RIGHT) / max(1, len(panel)), top + plot
    errors, bottom = plot * ERRORS, floor - plot * (ERRORS + GAP)
    for index, column in enumerate(panel):
        left, right = round(_LEFT + index * width), round(_LEFT + (index + 1) * width) - 2
        draw.rectangle((left, bottom - column.height * (bottom - top), right, bottom), fill=_colour(column))
        if column.predicted is not None:
            draw.rectangle((left, floor - errors * min(column.predicted, MOST) / MOST, right, floor), fill=CLOSE)
        if column.real is not None:
            x, y = (left + right) / 2, floor - errors * min(column.real, MOST) / MOST
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_INK)
    draw.line((_LEFT, floor - errors / MOST, _WIDTH - _RIGHT, floor - errors / MOST), fill=_INK)
    for text, y in (("error", floor - errors / 2), ("way", (top + bottom) / 2)):
        draw.text((_LEFT - 8, y), text, fill=_INK, font=font, anchor="rm")


def _curves_pillow(panels: dict[str, dict[str, list[float]]], xlabel: str) -> np.ndarray:
    from PIL import Image, ImageDraw

    plot, gap, width = 180, 60, 990
    image = Image.new("RGB", (width, 40 + len(panels) * (plot + gap)), _PAPER)
    draw, small = ImageDraw.Draw(image), _font(13)
    for p, (title, lines) in enumerate(panels.items()):
        top = 32 + p * (plot + gap)
        draw.text((_LEFT, top - 24), title, fill=_INK, font=small)
        draw.rectangle((_LEFT, top, width - _RIGHT, top + plot), outline=(180, 180, 180))
        finite = [v for values in lines.values() for v in values if np.isfinite(v)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        pad = (high - low) * 0.08 or abs(high) * 0.02 or 1.0
        low, high = low - pad, high + pad
        count = max(len(values) for values in lines.values())
        step = (width - _RIGHT - _LEFT - 20) / max(1, count - 1)
        for share in (0.0, 0.5, 1.0):
            y = top + plot * (1 - share)
            draw.text((_LEFT - 6, y), f"{low + share * (high - low):.4g}", fill=_INK, font=small, anchor="rm")
        for index, ((name, values), color) in enumerate(zip(lines.items(), CURVES, strict=False)):
            points = [(_LEFT + 10 + i * step, top + plot * (high - v) / (high - low)) if np.isfinite(v) else None
                      for i, v in enumerate(values)]  # fmt: skip
            for a, b in zip(points, points[1:], strict=False):
                if a and b:
                    draw.line((a, b), fill=color, width=2)
            for x, y in filter(None, points):
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
            if len(lines) > 1:
                draw.text((width - _RIGHT - 8, top + 6 + 16 * index), name, fill=color, font=small, anchor="rt")
        for i in _ticks(count):
            draw.text((_LEFT + 10 + i * step, top + plot + 4), str(i), fill=_INK, font=small, anchor="mt")
    draw.text((width / 2, image.height - 6), xlabel, fill=_INK, font=small, anchor="mb")
    return np.asarray(image)


def _ticks(count: int) -> range:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if count / step <= 12 or step == 1000)
    return range(0, count, step)
