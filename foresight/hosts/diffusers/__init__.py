"""Foresight in diffusers: one hook on each transformer, in diffusers' own registry."""

import contextlib
import functools
import logging
import weakref
from collections.abc import Mapping, Sequence
from numbers import Integral

import diffusers
import torch

from ...engine import Config, ForecastConfig, RunStats
from ...engine.compiler import keep_out_of_graphs
from ..blocks import UnsupportedModel
from .families import family_for

log = logging.getLogger(__name__)
OLDEST = (0, 42)  # the first whose state managers say which context a call is in


def check_version(version: str) -> None:
    """Refuse a diffusers that is too old.

    Raises:
        ImportError: it is.
    """
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ImportError(f"Foresight needs diffusers {needed} or newer, this is {version}: pip install -U diffusers")


try:
    from diffusers.hooks import HookRegistry

    from .hook import ForesightHook
except ImportError:
    check_version(diffusers.__version__)
    raise

NAME = "foresight"
NAMES = "transformer", "unet"  # how pipelines call what they ask in each step, and a second one of it


class ForesightHandle:
    """What `apply_foresight` returns: `stats` and `runs` say what was done, `remove()` ends it."""

    def __init__(self, hooked: Sequence[tuple[torch.nn.Module, ForesightHook]]):
        self._hooked = hooked

    @property
    def stats(self) -> RunStats | None:
        """The record of the run under way, else of the last one, else None; of two transformers, the newer one's."""
        return max((hook for _, hook in self._hooked), key=lambda hook: hook.began).stats

    @property
    def runs(self) -> list[RunStats]:
        """The newest record of each transformer that has one: of Wan 2.2, those of both stages."""
        return [hook.stats for _, hook in self._hooked if hook.stats is not None]

    def remove(self) -> None:
        """Take all hooks off; the transformers are then as they were. Removing twice does nothing."""
        for transformer, hook in self._hooked:
            _remove(transformer, hook)


def _put(transformer: torch.nn.Module, hook: ForesightHook) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if (before := registry.get_hook(NAME)) is not None:
        _remove(transformer, before)
    with _behind_offloading(transformer, registry):
        registry.register_hook(hook, NAME)


def _remove(transformer: torch.nn.Module, hook: ForesightHook) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if registry.get_hook(NAME) is not hook:
        return
    hook.end_run()
    hook.removed = True
    with _behind_offloading(transformer, registry):
        registry.remove_hook(NAME, recurse=False)
    if (
        not registry.hooks
        and getattr(transformer.__dict__.get("forward"), "__func__", None) is type(transformer).forward
    ):
        del transformer.forward  # diffusers leaves the bound method behind


@contextlib.contextmanager
def _behind_offloading(module: torch.nn.Module, registry: HookRegistry):
    """Let hooks come and go behind accelerate's (`enable_model_cpu_offload`).

    It wraps `forward`, keeps what it wraps beside it, and is taken off and put on again after every run of a pipeline:
    what has wrapped it by then is gone, or comes back. Other hooks of diffusers keep the order in which they came.
    """
    outer, inner = (module.__dict__.get(name) for name in ("forward", "_old_forward"))
    if outer is None or inner is None or registry.hooks.keys() - {NAME}:
        yield
        return
    module.forward = inner
    try:
        yield
    finally:
        module._old_forward, module.forward = module.forward, outer


def _check(transformer: torch.nn.Module, config: Config, steps: int | None) -> None:
    """Refuse a diffusers that is too old, a number that is none and a model that cannot be; say what was not tested."""
    check_version(diffusers.__version__)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1):
        raise ValueError(f"steps={steps!r}: must be a whole number of 1 or more, or None where the pipeline says it")
    family = family_for(transformer, config)
    if not family.known:
        log.info("Foresight: %s is not among the models that were tested; validate shows how good it is", family.name)


def _denoisers(model: object) -> list[torch.nn.Module]:
    """What a pipeline calls in each step, without what `torch.compile(module)` puts around it; a model is that itself.

    Raises:
        TypeError: it is neither a pipeline nor a model.
        UnsupportedModel: it is a pipeline without any.
    """
    components = {"transformer": model} if isinstance(model, torch.nn.Module) else getattr(model, "components", None)
    if not isinstance(components, Mapping):
        kind = type(model).__name__
        raise TypeError(f"apply_foresight takes a diffusers pipeline, or its transformer or UNet, not {kind}")
    modules = {k: getattr(x, "_orig_mod", x) for k, x in components.items() if isinstance(x, torch.nn.Module)}
    found = [x for name, x in modules.items() if name.startswith(NAMES) or "UNet" in type(x).__name__]
    if not found:
        has = ", ".join(modules) or "no model at all"
        raise UnsupportedModel(
            f"Foresight finds neither a transformer nor a UNet in {type(model).__name__}, which has {has}. "
            "Apply it to the model that is called in each step."
        )
    return found


def _scheduler_of(pipe: weakref.ref) -> object | None:
    """The scheduler that a pipeline has now; the pipeline itself is not kept alive."""
    return getattr(pipe(), "scheduler", None)


def apply_foresight(
    model: "diffusers.DiffusionPipeline | torch.nn.Module",
    config: Config | None = None,
    *,
    steps: int | None = None,
    group: "torch.distributed.ProcessGroup | None" = None,
) -> ForesightHandle:
    """Make a diffusers pipeline faster from its next run on; a Foresight applied before is replaced.

    ```python
    handle = apply_foresight(pipe, ForecastConfig(threshold=0.5))
    video = pipe("a red ball moving right").frames
    print(handle.stats.summary())
    handle.remove()
    ```

    Args:
        model: The pipeline, whose scheduler then tells all noise levels, and which may have two transformers (Wan 2.2);
            or one transformer or UNet, compiled or not. The method paper takes the classes in the table of families.
        config: Settings, `ForecastConfig` or `PaperConfig`; forecast with its defaults when None.
        steps: Denoising steps of a run, where neither a pipeline nor its scheduler says it. Without it, forecast goes
            by the list that the timesteps are of, else by the first three levels (by more where they are bfloat16's),
            the paper's automatic warmup ends when 15 % of the first timestep has passed; percents are shares of that.
        group: The processes that make the video with this one, where `hosts/ranks.py` does not find them.

    Raises:
        ImportError: diffusers is older than 0.42.
        TypeError: model is neither a pipeline nor a model.
        ValueError: steps is no whole number, or less than 1.
        UnsupportedModel: no model in a pipeline, no latent or timestep, or no record for a method that looks at blocks.
    """
    transformers, config = _denoisers(model), config or ForecastConfig()
    for transformer in transformers:
        _check(transformer, config, steps)
    keep_out_of_graphs()  # diffusers has loaded the compiler
    scheduler = functools.partial(_scheduler_of, weakref.ref(model))  # a model has none
    hooked = [(transformer, ForesightHook(config, steps, group, scheduler)) for transformer in transformers]
    for transformer, hook in hooked:
        _put(transformer, hook)
    return ForesightHandle(hooked)
