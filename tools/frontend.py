"""The frontend of a running ComfyUI in a browser's page."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright import sync_api

from tools import hosts, stand_ins

STEPS = 16
RENDERERS = {"classic": False, "nodes2": True}
WORKFLOWS = sorted((hosts.ROOT / "workflows").glob("*.json"))


def _chromium(p: sync_api.Playwright) -> str:
    """A Chromium's path: one that is installed, else one that playwright can fetch."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if shutil.which(name):
            return shutil.which(name)
    path = p.chromium.executable_path
    if not Path(path).is_file():
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        try:
            subprocess.run(command, timeout=180, capture_output=True, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise RuntimeError("no Chromium here, and none could be installed") from error
    return path


@contextlib.contextmanager
def chromium() -> Iterator[sync_api.Browser]:
    """A headless Chromium; a RuntimeError says why there is none."""
    with sync_api.sync_playwright() as p:
        path = _chromium(p)
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        try:
            browser = p.chromium.launch(executable_path=path, args=arguments)
        except sync_api.Error as error:  # fetched, but the system lacks its libraries
            raise RuntimeError(f"{path} does not start: {str(error).splitlines()[0]}") from error
        yield browser
        browser.close()


def linked_models(part) -> list[dict]:
    """Every model that a workflow names with its folder."""
    if isinstance(part, dict):
        own = [part] if {"directory", "name", "url"} <= set(part) else []
        return own + [model for value in part.values() for model in linked_models(value)]
    return [model for value in part for model in linked_models(value)] if isinstance(part, list) else []


def comfyui(base: Path, page: Path | None = None) -> hosts.ComfyUI:
    """A ComfyUI in this empty folder, with an empty file for every model, a stand-in for every node of another pack
    and the image that a workflow names; `page` as there."""
    for path in WORKFLOWS:
        for model in linked_models(json.loads(path.read_text())):
            file = base / "models" / model["directory"] / model["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()  # loaders list names; nothing here loads them
    stand_ins.put(base)
    path = Path(os.environ["COMFYUI_PATH"])
    (base / "input").mkdir(exist_ok=True)
    shutil.copy(path / "input" / "example.png", base / "input")
    return hosts.ComfyUI(path, base / "comfyui.log", base, page)


class Page:
    """A page with the frontend in it."""

    def __init__(self, browser, server, renderer: str):
        settings = {
            "Comfy.TutorialCompleted": True,  # else the template browser covers the graph
            "Comfy.Minimap.Visible": False,  # else it covers a corner
            "Comfy.Locale": "en",
            "Comfy.VueNodes.Enabled": RENDERERS[renderer],
            "Comfy.ColorPalette": "dark",
        }
        for name, value in settings.items():
            request = urllib.request.Request(f"{server.url}/settings/{name}", json.dumps(value).encode())
            urllib.request.urlopen(request, timeout=30).close()
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": 1500, "height": 900})
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.server = server
        self.page.goto(server.url, wait_until="domcontentloaded")
        self.wait()

    def _console(self, message) -> None:
        if message.type in ("error", "warning") and "foresight" in (message.text + str(message.location)).lower():
            self.errors.append(message.text)

    def wait(self) -> None:
        ready = "() => window.app?.graph && window.app.extensionManager?.workflow"
        self.page.wait_for_function(ready, timeout=90_000)
        self.page.wait_for_timeout(1000)

    def run(self, code: str, argument=None):
        return self.page.evaluate(code, argument)

    def load(self, path: Path) -> dict:
        """Open a workflow: its prompt, missing types and nodes with errors."""
        return self.run(
            """async ([graph, name]) => {
                if (!app.extensions.some((e) => e.name === "check"))
                    app.registerExtension({ name: "check", afterConfigureGraph(m) { document.missing = m; } });
                await app.loadGraphData(graph, true, true, name);
                const { output, workflow } = await app.graphToPrompt();
                const broken = app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type);
                return { missing: document.missing.map((m) => m.type ?? m), broken, output, version: workflow.version };
            }""",
            [json.loads(path.read_text()), path.stem],
        )

    def fit(self) -> None:
        self.run(
            """() => {
                const nodes = app.graph.nodes, ds = app.canvas.ds;
                const box = (i, f, g) => f(...nodes.map((n) => n.pos[i] + (g ? n.size[i] : 0)));
                const [x, y] = [box(0, Math.min), box(1, Math.min) - 40];
                const [w, h] = [box(0, Math.max, 1) - x, box(1, Math.max, 1) - y];
                ds.scale = Math.min(1, (innerWidth - 90) / w, (innerHeight - 130) / h);
                ds.offset[0] = -x + 75 / ds.scale;
                ds.offset[1] = -y + 105 / ds.scale;
                app.canvas.setDirty(true, true);
            }"""
        )
        self.page.wait_for_timeout(800)

    def demo(self, steps: int = STEPS, seed: int = 1) -> None:
        """The demo workflow, with fewer steps and settings that reuse much."""
        self.load(hosts.ROOT / "workflows" / "foresight_demo.json")
        self.set("KSampler", "steps", steps)
        self.set("KSampler", "seed", seed)
        self.set("KSampler", "cfg", 1)  # in half of the time
        self.set("ForesightApply", "threshold", 2)
        self.set("ForesightApply", "method", "paper")  # its evaluations take their time, so that one sees the map grow
        self.fit()

    def theme(self, name: str) -> None:
        """The colours of the page from now on: "dark" or "light"."""
        self.run("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", name)
        self.page.wait_for_timeout(500)

    def set(self, kind: str, widget: str, value) -> None:
        self.run(
            """([kind, widget, value]) => {
                for (const n of app.graph.nodes.filter((n) => n.type === kind))
                    n.widgets.find((w) => w.name === widget).value = value;
            }""",
            [kind, widget, value],
        )

    def add_report(self) -> None:
        """A Foresight Report behind the demo's sampler, which puts the figures into the history."""
        self.run(
            """() => {
                const of = (kind) => app.graph.nodes.find((n) => n.type === kind);
                const report = LiteGraph.createNode("ForesightReport");
                report.pos = [20, 900];
                app.graph.add(report);
                of("ForesightApply").connect(0, report, 0);
                of("KSampler").connect(0, report, 1);
            }"""
        )

    def press_run(self) -> None:
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def history(self) -> dict:
        return json.loads(self.server.get("/history"))

    def wait_for_new(self, before: dict) -> dict:
        """The entry of the prompt that ended since `before`."""
        for _ in range(1200):
            new = {k: v for k, v in self.history().items() if k not in before and v["status"]["completed"]}
            if new:
                self.page.wait_for_timeout(500)
                return {"prompt_id": next(iter(new)), **next(iter(new.values()))}
            self.page.wait_for_timeout(100)
        raise AssertionError("the prompt did not end in two minutes")

    @property
    def figures(self) -> str:
        found = self.page.locator(".foresight-figures")
        return found.first.inner_text() if found.count() else ""

    def records(self) -> list[dict]:
        return json.loads(self.server.get("/foresight/runs"))
