"""`python -m tools.pictures`: makes again the pictures that show the Foresight node, in a real ComfyUI and Chromium.

The help pictures of the nodes about a run, the workflows' thumbnails and the live map of the README. COMFYUI_PATH names
ComfyUI's folder. The system needs fonts with Chinese characters and emoji, which some of the prompts and notes have.
"""

import argparse
import math
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from tools import frontend, hosts

HELP = hosts.ROOT / "js" / "docs" / "img"
DEMO = hosts.ROOT / "workflows" / "foresight_demo.json"
AB = hosts.ROOT / "workflows" / "foresight_ab.json"
RAYLIGHT = hosts.ROOT / "workflows" / "raylight_wan_2_1_t2v.json"
RUN = ("foresight_demo", "foresight_ab")  # workflows whose model comes with the pack
MARGIN = 20  # around a graph, in its own units
CHROME = {"left": 120, "top": 150, "right": 120, "bottom": 150}  # what the frontend's bars need, in pixels

BOX = """(type) => {
    const parts = type ? app.graph.nodes.filter((n) => n.type === type) : [...app.graph.nodes, ...app.graph.groups];
    const boxes = parts.map((p) => Array.from(p.boundingRect ?? p._bounding));
    const [x, y] = [0, 1].map((i) => Math.min(...boxes.map((b) => b[i])));
    return [x, y, Math.max(...boxes.map((b) => b[0] + b[2])) - x, Math.max(...boxes.map((b) => b[1] + b[3])) - y];
}"""
VIEW = """([x, y, scale, left, top]) => {
    app.canvas.deselectAll();
    app.canvas.low_quality_zoom_threshold = app.canvas.min_font_size_for_lod = 0; // words stay words however small
    Object.assign(app.canvas.ds, { scale, offset: [left / scale - x, top / scale - y] });
    app.canvas.ds.onChanged?.(app.canvas.ds.scale, app.canvas.ds.offset);
    app.canvas.setDirty(true, true);
}"""
ALONE = """(type) => { // links and badges would be cut off at the picture's edge
    for (const n of app.graph.nodes) n.badges = [];
    for (const n of app.graph.nodes.filter((n) => n.type !== type)) n.pos = [n.pos[0], n.pos[1] + 5000];
    app.canvas.links_render_mode = LiteGraph.HIDDEN_LINK;
}"""
RECORD = """async () => {
    document.events = [];
    app.api.addEventListener("foresight.run", ({ detail }) => document.events.push(structuredClone(detail)));
}"""
REPLAY = """(index) => app.api.dispatchEvent(new CustomEvent("foresight.run", { detail: document.events[index] }))"""


def shot(page: frontend.Page, scale: float, margin: float, kind: str | None = None) -> Image.Image:
    """The part of the graph with these nodes, all by default, at this zoom."""
    x, y, width, height = page.run(BOX, kind)
    x, y = x - margin, y - margin
    width, height = math.ceil((width + 2 * margin) * scale), math.ceil((height + 2 * margin) * scale)
    left, top = CHROME["left"], CHROME["top"]
    size = {"width": width + left + CHROME["right"], "height": height + top + CHROME["bottom"]}
    if page.page.viewport_size != size:
        page.page.set_viewport_size(size)
        page.page.wait_for_timeout(500)
    page.run(VIEW, [x, y, scale, left, top])
    page.page.wait_for_timeout(1000)
    data = page.page.screenshot(clip={"x": left, "y": top, "width": width, "height": height})
    return Image.open(BytesIO(data)).convert("RGB")


def run(page: frontend.Page) -> dict:
    """Press Run and wait for the end, and for the pictures that nodes load then: the entry of the history."""
    before = page.history()
    page.press_run()
    entry = page.wait_for_new(before)
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(f"the run failed: {entry['status']['messages']}")
    page.page.wait_for_timeout(3000)
    return entry


def help_pictures(browser, server) -> None:
    """The Foresight node and its report after a run of the demo, as Nodes 2.0 draws them, and what others look like."""
    page = frontend.Page(browser, server, "nodes2")
    page.load(DEMO)
    page.set("ForesightApply", "threshold", 1)
    page.add_report()
    page.run("() => app.graph.nodes.find((n) => n.type === 'ForesightReport').setSize([480, 660])")
    run(page)
    for kind in ("ForesightApply", "ForesightReport"):
        page.run(ALONE, kind)
        shot(page, 1.25, 6.4, kind).save(HELP / f"{kind}.png", optimize=True)
    page.load(RAYLIGHT)
    page.run(ALONE, "ForesightRay")
    shot(page, 1.25, 6.4, "ForesightRay").save(HELP / "ForesightRay.png", optimize=True)
    page.load(AB)
    (saved,) = [file for file in files_of(run(page)) if file["type"] == "output"]
    query = "&".join(f"{key}={saved[key]}" for key in ("filename", "subfolder", "type"))
    (HELP / "comparison.webp").write_bytes(server.get(f"/view?{query}"))
    page.run(ALONE, "ForesightPicture")
    shot(page, 1.25, 6.4, "ForesightPicture").save(HELP / "ForesightPicture.png", optimize=True)
    page.page.close()


def files_of(entry: dict) -> list[dict]:
    """The pictures that a prompt has shown and saved."""
    return [file for output in entry["outputs"].values() for file in output.get("images", [])]


def thumbnails(browser, server) -> None:
    """Every workflow as the classic renderer draws it; those that run without a download with what they made."""
    for path in frontend.WORKFLOWS:
        page = frontend.Page(browser, server, "classic")
        page.load(path)
        if path.stem in RUN:
            page.fit()
            run(page)
        width = 1000 if path.stem == "foresight_demo" else 1280
        found = page.run(BOX)[2] + 2 * MARGIN
        picture = shot(page, min(1.0, 2 * width / found), MARGIN)
        height = round(picture.height * width / picture.width)
        picture.resize((width, height), Image.Resampling.LANCZOS).save(path.with_suffix(".jpg"), quality=85)
        page.page.close()


def live_map(browser, server) -> None:
    """The node while the demo runs, from the events of one run: a run of more videos, so that it takes its time."""
    page = frontend.Page(browser, server, "classic")
    page.load(DEMO)
    page.set("ForesightDemoLatent", "batch_size", 4)
    page.run(RECORD)
    run(page)
    page.run(ALONE, "ForesightApply")
    frames = []
    for index in range(page.run("() => document.events.length")):
        page.run(REPLAY, index)
        frames.append(shot(page, 0.75, 6, "ForesightApply"))
    page.page.close()
    palette = frames[-1].quantize(256, Image.Quantize.MAXCOVERAGE)  # one for all: only what changes is stored
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [160] * (len(frames) - 1) + [2600]
    path = hosts.ROOT / "docs" / "live_map.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def main() -> None:
    made = {"help": help_pictures, "thumbnails": thumbnails, "live_map": live_map}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=made, help="make only these")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as base,
        frontend.comfyui(Path(base)) as server,
        frontend.chromium() as browser,
    ):
        for name in [args.only] if args.only else made:
            made[name](browser, server)


if __name__ == "__main__":
    main()
