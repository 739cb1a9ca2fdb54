"""Foresight in diffusers: one hook on the transformer, in diffusers' own registry."""

import contextlib
import logging
from numbers import Integral

import diffusers
import torch

from ...engine import Config, ForecastConfig, RunStats
from ...engine.compiler import keep_out_of_graphs
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


class ForesightHandle:
    """What `apply_foresight` returns: `stats` of the run under way or the last one, and `remove()`."""

    def __init__(self, transformer: torch.nn.Module, hook: ForesightHook):
        self._transformer, self._hook = transformer, hook

    @property
    def stats(self) -> RunStats | None:
        """The record of the run under way, else of the last one, else None."""
        return self._hook.stats

    def remove(self) -> None:
        """Take the hook off; the transformer is then as it was. Removing twice does nothing."""
        _remove(self._transformer, self._hook)


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


def apply_foresight(
    transformer: torch.nn.Module,
    config: Config | None = None,
    *,
    steps: int | None = None,
    group: "torch.distributed.ProcessGroup | None" = None,
) -> ForesightHandle:
    """Make a diffusers transformer faster from the next call on; a Foresight applied before is replaced.

    ```python
    handle = apply_foresight(pipe.transformer, ForecastConfig(threshold=0.5))
    video = pipe("a red ball moving right").frames
    print(handle.stats.summary())
    handle.remove()
    ```

    Args:
        transformer: The pipeline's transformer, or its UNet, compiled (`transformer.compile()`) or not. The method
            paper takes the classes in the table of families.
        config: Settings, `ForecastConfig` or `PaperConfig`; forecast with its defaults when None.
        steps: Denoising steps of a run, where the pipeline does not say it (Wan's does). Without it, forecast goes by
            the list that the timesteps are of, else by the first three levels (by more where they are bfloat16's), the
            paper's automatic warmup ends when 15 % of the first timestep has passed; percents are shares of that.
        group: The processes that make the video with this one, where `hosts/ranks.py` does not find them.

    Raises:
        ImportError: diffusers is older than 0.42.
        ValueError: steps is no whole number, or less than 1.
        UnsupportedModel: the method looks at blocks and this class has no record; or it has no latent or timestep.
    """
    transformer = getattr(transformer, "_orig_mod", transformer)  # what torch.compile(transformer) has inside
    _check(transformer, config := config or ForecastConfig(), steps)
    keep_out_of_graphs()  # diffusers has loaded the compiler
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if (before := registry.get_hook(NAME)) is not None:
        _remove(transformer, before)
    hook = ForesightHook(config, steps, group)
    with _behind_offloading(transformer, registry):
        registry.register_hook(hook, NAME)
    return ForesightHandle(transformer, hook)
