import asyncio
import inspect
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.model_patcher
import execution

import nodes as comfy_nodes
from foresight.engine import Config, ForecastConfig, PaperConfig
from foresight.hosts import comfyui
from models.demo import codec, prompt
from pack.nodes import ForesightExtension
from pack.nodes.apply import ForesightApply
from pack.nodes.demo import DemoVAE, ForesightDemoLatent, ForesightDemoModel, ForesightDemoPrompt
from pack.nodes.ray import ForesightRay

ROOT = Path(__file__).resolve().parents[2]
WIDGETS = [
    "method",
    "threshold",
    "warmup_steps",
    "reuse_interval",
    "start_percent",
    "end_percent",
    "cache_device",
    "cache_budget_gb",
    "validate",
]


def limits_of(name: str) -> dict:
    """Default and limits of a widget, as the engine has them."""
    return {"default": "forecast", "options": ["forecast", "paper"]} if name == "method" else Config.limits(name)


@pytest.fixture(scope="module")
def demo_model():
    return ForesightDemoModel.execute().args[0]


def test_widgets_are_in_the_order_of_the_file_format_with_the_limits_of_the_config():
    inputs = ForesightApply.GET_SCHEMA().inputs
    assert [i.id for i in inputs] == ["model", *WIDGETS]
    for widget in inputs[1:]:
        for name, value in limits_of(widget.id).items():
            assert getattr(widget, name) == value
        assert widget.tooltip and widget.optional  # a prompt that a script sends may leave any of them out
    assert [i.id for i in inputs if getattr(i, "advanced", None)] == WIDGETS[4:]


def test_the_tooltip_of_the_threshold_names_the_presets():
    (threshold,) = [i for i in ForesightApply.GET_SCHEMA().inputs if i.id == "threshold"]
    assert all(f"{value} for" in threshold.tooltip for value in ("0.3", "1", "2")) and "0.5 to" in threshold.tooltip


@pytest.mark.parametrize(
    ("settings", "kind", "interval"),
    [
        ({}, ForecastConfig, 0),
        ({"threshold": 1.0}, ForecastConfig, 0),
        ({"method": "paper", "reuse_interval": 3}, PaperConfig, 3),
    ],
)
def test_the_method_chooses_the_type_of_the_settings(demo_model, settings, kind, interval):
    (template,) = wrappers(execute(demo_model, **settings))[0]
    assert type(template.config) is kind and template.config.reuse_interval == interval


def test_one_model_in_one_model_out():
    schema = ForesightApply.GET_SCHEMA()
    assert [o.io_type for o in schema.outputs] == ["MODEL"] and schema.inputs[0].io_type == "MODEL"
    assert (schema.node_id, schema.display_name, schema.category) == (
        "ForesightApply",
        "Foresight",
        "model/patch/foresight",
    )


def execute(model, **settings):
    class Hidden:
        unique_id, dynprompt = "7", None

    class Node(ForesightApply):
        hidden = Hidden

    return Node.execute(model, **settings).args[0]


def wrappers(patcher):
    return [w[comfyui.KEY] for w in patcher.wrappers.values() if comfyui.KEY in w]


def test_the_node_leaves_the_model_alone_and_patches_a_clone(demo_model):
    patched = execute(demo_model)
    assert patched is not demo_model and patched.model is demo_model.model
    assert len(wrappers(patched)) == 1 and not wrappers(demo_model)
    assert len(wrappers(execute(patched, threshold=1.0))) == 1
    assert not wrappers(execute(patched, threshold=0.0))


def test_contradictory_percents_are_refused_when_queued():
    assert ForesightApply.validate_inputs(start_percent=0.1, end_percent=0.9) is True
    assert ForesightApply.validate_inputs(0.9, 0.1) == "start_percent=0.9: must be below end_percent=0.1"
    assert ForesightApply.validate_inputs(None, 0.1) is True


@pytest.mark.parametrize("cls", [ForesightApply, ForesightRay])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"start_percent": -0.1}, "start_percent=-0.1: must be between 0.0 and 1.0"),  # the other one is not given
        ({"start_percent": 2.0}, "start_percent=2.0: must be between"),
        ({"start_percent": 1.0}, "start_percent=1.0: must be below end_percent=1.0"),
        ({"end_percent": 0.0}, "start_percent=0.0: must be below end_percent=0.0"),
        ({"end_percent": -1.0}, "end_percent=-1.0: must be between"),
        ({"start_percent": None, "end_percent": 0.1}, None),  # comes from a link
        ({"threshold": float("nan")}, "threshold=nan: must be a finite number"),
        ({"threshold": 33.0}, "threshold=33.0: must be between"),
        ({"threshold": None, "cache_budget_gb": float("inf")}, "cache_budget_gb=inf: must be a finite number"),
        ({}, None),
    ],
)
def test_bad_settings_are_refused_when_queued(cls, given, says):
    """By ComfyUI's own validation of a prompt, which does not look at the limits of what a node validates itself."""
    asyncio.run(check_queued(cls, given, says))


async def check_queued(cls, given, says):
    name = cls.GET_SCHEMA().node_id
    first = cls.GET_SCHEMA().inputs[0].id
    prompt = {
        "1": {"class_type": name, "inputs": {first: ["2", 0], **given}},
        "2": {"class_type": "Maker", "inputs": {}},
    }
    prompt["1"]["inputs"].update({key: ["2", 1] for key, value in given.items() if value is None})
    made = type("Maker", (), {"RETURN_TYPES": ("MODEL" if first == "model" else "RAY_ACTORS", "FLOAT"),
                              "INPUT_TYPES": classmethod(lambda cls: {"required": {}}), "FUNCTION": "run"})  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, name, cls)
        patch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "Maker", made)
        valid, errors, _ = await execution.validate_inputs("p", prompt, "1", {})
    assert valid == (says is None), errors
    assert says is None or any(says in error["details"] for error in errors)


def test_the_demo_prompt_names_what_it_does_not_know():
    assert ForesightDemoPrompt.validate_inputs("a red ball moving left") is True
    message = ForesightDemoPrompt.validate_inputs("purple ball")
    assert "'purple'" in message and all(word in message for word in prompt.VOCABULARY)
    assert "both a colour" in ForesightDemoPrompt.validate_inputs("red blue ball")
    (entry,) = ForesightDemoPrompt.execute("red ball").args[0]
    assert entry[0].shape == (1, 3, 16) and entry[1] == {}


def test_core_vae_nodes_take_the_demo_codec():
    import nodes

    latent = {"samples": torch.randn(2, codec.CHANNELS, 8, 16, 16) * 0.1}
    (images,) = nodes.VAEDecode().decode(DemoVAE(), latent)
    assert images.shape == (16, 32, 32, 3) and 0 <= images.min() and images.max() <= 1
    (back,) = nodes.VAEEncode().encode(DemoVAE(), images[:8])
    torch.testing.assert_close(back["samples"], latent["samples"][:1])


def test_the_empty_latent_has_the_shape_that_the_model_was_trained_on(demo_model):
    latent = ForesightDemoLatent.execute(32, 32, 8, 2).args[0]["samples"]
    assert latent.shape == (2, 12, 8, 16, 16) and not latent.any()
    assert demo_model.get_model_object("latent_format").latent_channels == 12


def test_latent_preview_factors_show_the_mean_colour():
    video = torch.rand(1, 1, 4, 4, 3)
    factors = torch.tensor(ForesightDemoModel.execute().args[0].get_model_object("latent_format").latent_rgb_factors)
    preview = (codec.encode(video)[0, :, 0].permute(1, 2, 0) @ factors) / 2 + 0.5
    mean = video[0, 0].unflatten(0, (2, 2)).unflatten(2, (2, 2)).mean(dim=(1, 3))
    torch.testing.assert_close(preview, mean)


def test_the_workflow_file_and_the_servers_format_say_the_same():
    ui = json.loads((ROOT / "workflows" / "foresight_demo.json").read_text())
    api = json.loads((ROOT / "tools" / "foresight_demo.api.json").read_text())
    assert ui["version"] == 0.4
    nodes = {str(node["id"]): node for node in ui["nodes"] if node["type"] != "MarkdownNote"}
    links = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    assert set(nodes) == set(api)
    for name, node in nodes.items():
        assert node["type"] == api[name]["class_type"]
        for slot in node["inputs"]:
            if slot.get("link") is not None:
                assert api[name]["inputs"][slot["name"]] == links[slot["link"]]
        values = [v for v in api[name]["inputs"].values() if not isinstance(v, list)]
        assert [v for v in node.get("widgets_values") or [] if v != "fixed"] == values
        if node["type"].startswith("Foresight"):
            assert node["properties"]["cnr_id"] == "foresight"


def test_the_demo_workflow_has_the_defaults_of_the_node():
    ui = json.loads((ROOT / "workflows" / "foresight_demo.json").read_text())
    (node,) = [n for n in ui["nodes"] if n["type"] == "ForesightApply"]
    assert node["widgets_values"] == [limits_of(name)["default"] for name in WIDGETS]


def test_every_node_has_a_help_page():
    pages = {path.stem for path in (ROOT / "js" / "docs").glob("*.md")}
    assert pages == {node.GET_SCHEMA().node_id for node in asyncio.run(ForesightExtension().get_node_list())}


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_are_whole(path):
    workflow = json.loads(path.read_text())
    assert workflow["version"] == 0.4 and path.with_suffix(".jpg").is_file()
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for _, source, slot, target, entry, kind in workflow["links"]:
        given, taken = by_id[source]["outputs"][slot]["type"], by_id[target]["inputs"][entry]["type"]
        assert given == kind or "*" in (given, kind)
        assert "*" in (given, taken) or given in taken.split(",")
    linked = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    assert bool(linked) == (path.stem not in ("foresight_demo", "foresight_ab"))  # those have a model of their own
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["url"].startswith("https://huggingface.co/") and model["name"] in node["widgets_values"]


def test_the_help_page_of_the_main_node_lists_its_widgets_with_their_defaults():
    text = (ROOT / "js" / "docs" / "ForesightApply.md").read_text()
    for name in WIDGETS:
        limits = limits_of(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {limits['default']:g} |" in row if "min" in limits else f"| {limits['default']} |" in row
        assert "min" not in limits or f"{limits['min']:g} to {limits['max']:g}" in row


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_text_of_a_node_is_there_in_every_language(language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    schemas = [node.GET_SCHEMA() for node in asyncio.run(ForesightExtension().get_node_list())]
    assert set(texts) == {schema.node_id for schema in schemas}
    for schema in schemas:
        text = texts[schema.node_id]
        assert set(text["inputs"]) == {i.id for i in schema.inputs}
        assert list(text["outputs"]) == [str(k) for k in range(len(schema.outputs))]
        assert all(entry["tooltip"] for entry in (*text["inputs"].values(), *text["outputs"].values()))
        if language == "en":  # what the nodes themselves say
            assert (text["display_name"], text["description"]) == (schema.display_name, schema.description)
            assert [t["tooltip"] for t in text["inputs"].values()] == [i.tooltip for i in schema.inputs]
            assert [t["tooltip"] for t in text["outputs"].values()] == [o.tooltip for o in schema.outputs]


def test_every_help_page_has_its_picture():
    for page in (ROOT / "js" / "docs").glob("*.md"):
        assert f"](img/{page.stem}.png)" in page.read_text(), page
        assert (ROOT / "js" / "docs" / "img" / f"{page.stem}.png").is_file(), page


REQUIRED = {  # what a prompt must have, as in the first version: an input that was added since has a default
    "ForesightApply": "model",
    "ForesightRay": "ray_actors",
    "ForesightReport": "model latent filename_prefix",
    "ForesightCompare": "plain accelerated difference_gain",
    "ForesightTimer": "model",
    "ForesightSpeedup": "plain_model plain_latent foresight_model foresight_latent",
    "ForesightPicture": "plain accelerated plain_model foresight_model model_name width",
    "ForesightDemoModel": "",
    "ForesightDemoPrompt": "text",
    "ForesightDemoLatent": "width height length batch_size",
    "ForesightLatteLoader": "unet_name weight_dtype",
    "ForesightLatteVAELoader": "vae_name",
    "ForesightLatteConditioning": "positive negative",
    "ForesightEmptyLatteLatent": "width height length batch_size",
    "ForesightOpenSoraLoader": "unet_name weight_dtype",
    "ForesightOpenSoraVAELoader": "vae_name",
    "ForesightOpenSoraConditioning": "positive fps width height",
    "ForesightModelSamplingOpenSora": "model width height length",
    "ForesightEmptyOpenSoraLatent": "width height length batch_size",
    "ForesightVideoCaption": "text clean aesthetic_score motion_score camera_motion",
    "ForesightCogVideoXLoader": "unet_name weight_dtype",
}


def test_a_prompt_of_the_first_version_is_taken():
    """Each node is executed without its optional inputs if `execute` has defaults for all of them."""
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(ForesightExtension().get_node_list())}
    assert nodes.keys() == REQUIRED.keys()
    for name, node in nodes.items():
        assert [i.id for i in node.GET_SCHEMA().inputs if not i.optional] == REQUIRED[name].split(), name
        inspect.signature(node.execute).bind(**dict.fromkeys(REQUIRED[name].split()))


def test_core_can_load_the_demo_model_again(demo_model):
    """To train a LoRA, and for a second GPU, it makes a patcher of its own out of what the loader left."""
    make, args = demo_model.cached_patcher_init
    again = make(*args, disable_dynamic=True)
    assert type(again) is comfy.model_patcher.ModelPatcher and again.model is not demo_model.model
    ours, theirs = demo_model.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert demo_model.deepclone_multigpu().model is not demo_model.model
