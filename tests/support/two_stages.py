"""A prompt of two KSamplerAdvanced, executed by ComfyUI's own executor without a server."""

import copy
import types
from unittest import mock

import execution
import torch

import nodes
from pack.nodes.apply import ForesightApply
from support.comfy_models import Model

STEPS = 20
_SETTINGS = {"threshold": 1.0, "method": "forecast"}
_SAMPLER = {"noise_seed": 5, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}


class _Given:
    """A node that gives what a test has put here, or what a function makes of its input."""

    CATEGORY, FUNCTION = "", "give"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}, "optional": {"value": ("*",)}}

    @classmethod
    def IS_CHANGED(cls, **kwargs):
        return float("nan")  # nothing comes out of the cache

    def give(self, name, value=None):
        given = self.things[name]
        return (given(value) if callable(given) else given,)


def _node(output: str, things: dict, is_output: bool = False) -> type:
    return type("Given", (_Given,), {"RETURN_TYPES": (output,), "OUTPUT_NODE": is_output, "things": things})


class TwoStages:
    """The prompt, for a test to change, and what came out.

    Attributes:
        prompt: In ComfyUI's format for the API. "1" and "2" are the samplers, "end" takes their latent.
        things: What the nodes "Latent" (a function of a latent), "Model" and "Text" give by name.
        out: The last latent.
    """

    def __init__(self, model: Model, second: Model | None = None):
        self.out, empty = None, {"samples": model.latent(1)}
        self.things = {"high": model.patcher, "low": (second or model).patcher, "empty": empty, "end": self._end}
        self.things |= {"positive": model.text(1), "negative": model.text(2), "same": lambda latent: latent}
        texts = {"positive": ["positive", 0], "negative": ["negative", 0]}
        common = {**_SAMPLER, **texts}
        self.prompt = {
            "high": {"class_type": "TestModel", "inputs": {"name": "high"}},
            "low": {"class_type": "TestModel", "inputs": {"name": "low"}},
            "positive": {"class_type": "TestText", "inputs": {"name": "positive"}},
            "negative": {"class_type": "TestText", "inputs": {"name": "negative"}},
            "empty": {"class_type": "TestLatent", "inputs": {"name": "empty"}},
            "high_foresight": {"class_type": "ForesightApply", "inputs": {"model": ["high", 0], **_SETTINGS}},
            "low_foresight": {"class_type": "ForesightApply", "inputs": {"model": ["low", 0], **_SETTINGS}},
            "1": {
                "class_type": "KSamplerAdvanced",
                "inputs": {
                    "model": ["high_foresight", 0], "add_noise": "enable", "latent_image": ["empty", 0], **common,
                    "start_at_step": 0, "end_at_step": 10, "return_with_leftover_noise": "enable",
                },
            },
            "2": {
                "class_type": "KSamplerAdvanced",
                "inputs": {
                    "model": ["low_foresight", 0], "add_noise": "disable", "latent_image": ["1", 0], **common,
                    "start_at_step": 10, "end_at_step": 10000, "return_with_leftover_noise": "disable",
                },
            },
            "end": {"class_type": "TestEnd", "inputs": {"name": "end", "value": ["2", 0]}},
        }  # fmt: skip

    def _end(self, latent):
        self.out = latent["samples"]
        return latent

    def plain(self) -> torch.Tensor:
        """The last latent of the same prompt without Foresight."""
        other = copy.copy(self)
        other.prompt = copy.deepcopy(self.prompt)
        samplers = (node for node in other.prompt.values() if node["class_type"] == "KSamplerAdvanced")
        for inputs in (node["inputs"] for node in samplers):
            inputs["model"] = [inputs["model"][0].removesuffix("_foresight"), 0]
        other.things = {**self.things, "end": other._end}
        return other.execute()

    def execute(self) -> torch.Tensor:
        """Execute the prompt.

        Raises:
            AssertionError: a node has failed.
        """
        kinds = {"TestModel": _node("MODEL", self.things), "TestText": _node("CONDITIONING", self.things)}
        kinds |= {"TestLatent": _node("LATENT", self.things), "TestEnd": _node("LATENT", self.things, True)}
        kinds |= {"ForesightApply": ForesightApply}
        server = types.SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *args: None)
        with mock.patch.dict(nodes.NODE_CLASS_MAPPINGS, kinds):
            executor = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0, "ram_inactive": 0})
            ends = [name for name, node in self.prompt.items() if node["class_type"] == "TestEnd"]
            executor.execute(self.prompt, "prompt", {}, ends)
        assert executor.success, executor.status_messages[-1]
        return self.out
