"""The pages for developers: their examples run, their links lead somewhere, and the names in them exist."""

import ast
import dataclasses
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

from foresight import ForecastConfig, PaperConfig
from foresight.engine import Run, policy
from foresight.engine.even import shifted
from foresight.engine.tape import Tape
from foresight.hosts import blocks

ROOT = Path(__file__).resolve().parents[1]
FILE = r"[\w.-]+\.(py|md|js|json|svg|toml|yml|safetensors)"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / ".github" / "pull_request_template.md"]
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CPU = torch.device("cpu")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def examples(name: str) -> list[str]:
    """The Python code blocks of a page."""
    return [code for language, code in CODE.findall(page(name)) if language == "python"]


def quoted(path: Path) -> list[str]:
    """What stands in backticks in a page, outside of its code blocks."""
    return re.findall(r"`([^`\n]+)`", CODE.sub("", path.read_text(encoding="utf-8")))


# ---- add a method


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The example of the page as what it says it is, a file."""
    monkeypatch.setattr(policy, "_POLICIES", dict(policy._POLICIES))  # it registers itself there
    (code,) = examples("add-a-method.md")
    (tmp_path / "static_reuse.py").write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("static_reuse", tmp_path / "static_reuse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def play(config, evaluations: int = 8, signatures: str = "AAAAAAAA"):
    """A sampler's loop: evaluation e of a model gives (e, e). What the sampler got, and the record."""
    run, got = Run(config, steps=evaluations), []
    for e in range(evaluations):

        def compute(e=e):
            return (torch.full((1, 2), float(e)),)

        run.begin_evaluation()
        (output,) = run.output("denoised", signatures[e], compute, CPU)
        got.append(output[0, 0].item())
        output.zero_()  # a sampler may write to what it gets
    return got, run.close()


def test_the_method_of_the_page_computes_every_nth_evaluation(method):
    got, stats = play(method.StaticConfig(reuse_interval=3))
    assert got == [0, 1, 1, 1, 4, 4, 4, 7]
    assert [e.kind for e in stats.evaluations] == "warmup full reuse reuse full reuse reuse full".split()
    assert [e.computed for e in stats.evaluations if e.kind == "reuse"] == [[0]] * 4
    assert (stats.reused, stats.total) == (4, 8)
    assert stats.peak_bytes == 2 * 4  # one output of two fp32 numbers
    assert stats.to_dict()["config"]["method"] == "static" and stats.inactive is None
    assert play(method.StaticConfig())[0] == [0, 1, 1, 3, 3, 5, 5, 7]  # 0 means 2


def test_the_method_of_the_page_repeats_no_output_of_another_shape_or_cond(method):
    got, stats = play(method.StaticConfig(reuse_interval=3), signatures="AAABBBBB")
    assert got == [0, 1, 1, 3, 4, 4, 4, 7] and stats.reused == 3


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"threshold": 0}, "threshold is 0"),
        ({"reuse_interval": 1}, "reuse_interval is 1"),
        ({"warmup_steps": 8}, "at most 0 of 8 steps can be reused: all of them are warmup"),
    ],
)
def test_the_method_of_the_page_can_be_off(method, settings, reason):
    got, stats = play(method.StaticConfig(**settings))
    assert got == list(range(8)) and stats.inactive == reason and stats.peak_bytes == 0


def test_the_page_names_whatever_a_policy_can_override():
    names = [name for name in (*vars(policy.Policy), *vars(policy.BlockCall)) if not name.startswith("_")]
    words = set(re.findall(r"\w+", " ".join(quoted(ROOT / "docs" / "add-a-method.md"))))
    assert {"decide", "output", "finish"} <= set(names) and not set(names) - words
    assert not {f.name for f in dataclasses.fields(policy.Resources)} - words


# ---- add a model


class AddOne(torch.nn.Module):
    """A block that adds one to each of its tensors, and counts how often it ran."""

    def __init__(self):
        super().__init__()
        self.ran = 0

    def forward(self, *hidden_states):
        self.ran += 1
        moved = tuple(x + 1 for x in hidden_states)
        return moved if len(moved) > 1 else moved[0]


class TinyVideo(torch.nn.Module):
    """ComfyUI's new model on the page: one tensor."""

    dim, patch_size = 4, (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(AddOne() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class TinyVideoTransformer3DModel(torch.nn.Module):
    """diffusers' new model on the page: video and text."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList(AddOne() for _ in range(3))

    def forward(self, x):
        text = torch.zeros(1, 2, 4)
        for block in self.transformer_blocks:
            x, text = block(x, text)
        return x


def record(host: str):
    """The page's record for one host."""
    families = importlib.import_module(f"foresight.hosts.{host}.families")
    types = {cls.__name__: cls for cls in (families.Family, *families.Family.__subclasses__(), blocks.Section)}
    (code,) = (code for code in examples("add-a-model.md") if code.partition("(")[0] in vars(families))
    return eval(code, types)  # noqa: S307


@pytest.mark.parametrize("host, cls", [("comfyui", TinyVideo), ("diffusers", TinyVideoTransformer3DModel)])
def test_the_record_of_the_page_is_enough_for_the_method_paper(host, cls, monkeypatch):
    pytest.importorskip({"comfyui": "comfy"}.get(host, host), reason="its host is not installed here")
    family, model = record(host), cls()
    with pytest.raises(blocks.UnsupportedModel):
        blocks.family_of(model, [family])
    monkeypatch.setattr(cls, "__module__", family.model.rpartition(".")[0])  # the file that the page means
    assert blocks.family_of(model, [family]) is family
    stack = family.stack(model)
    assert [block for block, _ in stack] == [m for m in model.modules() if isinstance(m, AddOne)]

    run = Run(PaperConfig(threshold=2.0, warmup_steps=3, sample_rows=0), steps=8)
    inputs = [torch.full((1, 4, 4), 1 - 0.5**e) for e in range(8)]
    ran, given = [], []
    for x in inputs:
        run.begin_evaluation()
        given.append(blocks.run_blocks(run, stack, ["cond"], lambda x=x: model(x), family.batch_dim))
        ran.append([block.ran for block, _ in stack])
    stats = run.close()
    # The changes in warmup are 1/4 and 1/16, lambda is 1/16 + 1/40; in evaluation 3 it is 1/64, so all blocks qualify.
    # W W W | C R | C R | C: in 4 and 6 nothing runs, and the last block gives what it gave before.
    assert [e.kind for e in stats.evaluations] == "warmup warmup warmup full reuse full reuse full".split()
    assert ran == [[n] * 3 for n in (1, 2, 3, 4, 4, 5, 5, 6)]
    computed = [0, 1, 2, 3, 3, 5, 5, 7]
    assert all(torch.equal(x, inputs[e] + 3) for x, e in zip(given, computed, strict=True))  # three blocks add 1 each
    assert (stats.reused, stats.total) == (2 * 3, 8 * 3)
    assert not any("forward" in block.__dict__ for block, _ in stack)


def test_the_size_on_the_page_plans_memory():
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    # 4 channels a token; 3 frames of 4 x 6, in patches of 1 x 2 x 2, are 3 * 2 * 3 tokens
    assert record("comfyui").hidden_shape(TinyVideo(), (1, 16, 3, 4, 6)) == (1, 18, 4)


def test_the_page_names_every_field_of_a_record():
    words = set(re.findall(r"\w+", " ".join(quoted(ROOT / "docs" / "add-a-model.md"))))
    records = (blocks.Section, blocks.Family, *blocks.Family.__subclasses__())  # of the hosts that are installed
    fields = {f.name for cls in records for f in dataclasses.fields(cls)}
    assert {"sections", "inputs"} <= fields and not fields - words


# ---- links, paths and names


def test_the_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        linked = {(path.parent / target).resolve() for target in targets(path) if target.endswith(".md")}
        waiting += linked - reached
        reached |= linked
    assert set((ROOT / "docs").glob("*.md")) <= reached


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0, 2.0])
def test_the_readmes_plans_are_what_is_planned(threshold):
    """At flow shift 5 with Euler's method, as ComfyUI's host makes the run."""
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    from foresight.hosts.comfyui.run import SHORT, TAKES_BACK

    def plan(steps: int, guided: bool) -> str:
        levels = [shifted(1 - k / steps, 5.0) for k in range(steps + 1)]
        config, tape = ForecastConfig(threshold=threshold), Tape(until=TAKES_BACK * max(steps, SHORT))
        run = Run(config, schedule=levels, noise=lambda sigma: sigma, tape=tape, guided=guided)
        return f"{steps / (run.stats.planned or steps):.1f}x"

    (line,) = re.findall(rf"^\| \**{threshold:g}\** \|(.*)\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    plans = [plan(20, True), plan(30, True), plan(50, True), plan(8, False)]
    assert [cell.strip() for cell in line.split("|")][1:] == plans


def targets(path: Path) -> list[str]:
    """Where the relative links of a page lead."""
    links = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", path.read_text(encoding="utf-8")))
    return [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path):
    assert [target for target in targets(path) if not (path.parent / target).exists()] == []


def files() -> set[str]:
    """The names of all files of the repository."""
    return {path.name for path in ROOT.rglob("*") if ".git" not in path.parts and path.is_file()}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_path_is_that_of_a_file_or_folder(path):
    known, unknown = files(), []
    for word in quoted(path):
        if re.fullmatch(r"[\w.-]*/[\w./-]*", word):
            unknown += [word] if not any((base / word).exists() for base in (ROOT, ROOT / "foresight/hosts")) else []
        elif re.fullmatch(FILE, word):
            unknown += [word] if word not in known else []
    assert unknown == []


def ours() -> dict[str, list]:
    """Modules (by their last name) and classes of the library; those of a host that is not installed are left out."""
    found = {}
    for name, module in list(sys.modules.items()):  # tests/conftest.py has imported all of them
        if name.split(".")[0] in ("foresight", "models"):
            found.setdefault(name.rpartition(".")[2], []).append(module)
            for cls in vars(module).values():
                if inspect.isclass(cls) and cls.__module__ == name:
                    found.setdefault(cls.__name__, []).append(cls)
    return found


def has(owner, name: str) -> bool:
    """Whether a module or a class has this name; instances get some of theirs in `__init__`."""
    fields = getattr(owner, "__annotations__", {})
    return hasattr(owner, name) or name in fields or f"self.{name} =" in inspect.getsource(owner)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_member_of_ours_exists(path):
    known = ours()
    names = [word.partition("(")[0] for word in quoted(path) if not re.fullmatch(FILE, word)]
    pairs = [name.split(".") for name in names if re.fullmatch(r"\w+\.\w+", name) and name.split(".")[0] in known]
    assert [pair for pair in pairs if not any(has(owner, pair[1]) for owner in known[pair[0]])] == []
    assert pairs or path.name != "architecture.md"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_name_is_in_the_code(path):
    """Names as code has them, with an underscore or a capital inside."""
    code = [p for folder in ("foresight", "nodes", "models", "tests", "tools") for p in (ROOT / folder).rglob("*.py")]
    code = [p.read_text(encoding="utf-8") for p in (*code, ROOT / "run.py") if p != Path(__file__)]
    words = set(re.findall(r"\w+", "\n".join(code)))
    names = {word.removesuffix("()") for word in quoted(path)}
    names = {name for name in names if re.fullmatch(r"\w*(?:\w_\w|_\w|[a-z][A-Z])\w*", name)}
    assert names - words == set()


def test_every_message_that_the_help_page_quotes_is_one(path=ROOT / "js" / "docs" / "ForesightApply.md"):
    """In bold in its lists; `...` and n stand for what a message is filled with."""
    code = [p for folder in ("foresight", "nodes", "models") for p in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(p.read_text(encoding="utf-8")) for p in code]
    texts = [n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    texts += [p.read_text(encoding="utf-8") for p in (ROOT / "js").glob("*.js")]
    said = "\n".join(text for text in texts if isinstance(text, str))
    items = re.findall(r"^- \*\*.*(?:\n  .*)*", path.read_text(encoding="utf-8"), re.M)
    bold = [" ".join(text.split()) for item in items for text in re.findall(r"\*\*([^*]+)\*\*", item)]
    parts = [part.strip(" ,") for text in bold for part in re.split(r"\.\.\.|\bn\b", text)]
    assert [part for part in parts if len(part) > 5 and part not in said] == [] and len(bold) > 9


def test_a_wrong_name_and_a_wrong_path_are_found(tmp_path):
    wrong = tmp_path / "page.md"
    text = "`Run.outputs`, `not_there()`, `foresight/policy.py`, `policies.py`, [a](b.md), \n- **no message at all**"
    wrong.write_text(text, encoding="utf-8")
    for check in (
        test_every_link_leads_to_a_file,
        test_every_path_is_that_of_a_file_or_folder,
        test_every_member_of_ours_exists,
        test_every_name_is_in_the_code,
        test_every_message_that_the_help_page_quotes_is_one,
    ):
        with pytest.raises(AssertionError):
            check(wrong)
