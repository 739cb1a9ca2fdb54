"""Foresight in diffusers: one hook on the transformer, in diffusers' own registry."""

import inspect
import logging
from collections.abc import Callable, Hashable

import diffusers
import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ...engine import Config, ForecastConfig, Offload, Run, RunStats
from .. import blocks
from ..blocks import family_of
from .families import FAMILIES

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
    from diffusers.hooks import HookRegistry, ModelHook
    from diffusers.hooks.hooks import StateManager
except ImportError:
    check_version(diffusers.__version__)
    raise

NAME = "foresight"

log = logging.getLogger(__name__)


class ForesightHook(ModelHook):
    """Stands between a pipeline and its transformer. A run ends when the pipeline resets its stateful hooks.

    Without a reset (a hand-written loop) a run ends when the timestep rises again. An interrupted run ends at once.
    """

    _is_stateful = True

    def __init__(self, config: Config, steps: int | None):
        super().__init__()
        self._config, self._steps = config, steps
        self._contexts = StateManager(dict)  # diffusers tells stateful hooks' state managers which context a call is in
        self._run: Run | None = None
        self._stats: RunStats | None = None
        self._last_level: float | None = None
        self._seen: set[str] = set()  # contexts of the present evaluation
        self._pack: dict[str, Callable] = {}  # per context, from the tensors of a result to the result

    @property
    def stats(self) -> RunStats | None:
        """The run under way, else the last one, else None."""
        return self._run.stats if self._run is not None else self._stats

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        family = family_of(module, FAMILIES)
        self._family, self._stack = family, family.stack(module)
        self._signature = inspect.signature(type(module).forward)
        return module

    def new_forward(self, module: torch.nn.Module, *args, **kwargs):
        try:
            context = self._contexts.context
        except ValueError:  # a pipeline without contexts (Latte): one call, one evaluation
            context = None
        name = "" if context is None else context.name
        arguments = self._signature.bind_partial(module, *args, **kwargs).arguments
        if self._family.plain_with and arguments.get(self._family.plain_with) is not None:
            return self.fn_ref.original_forward(*args, **kwargs)
        try:
            if self._run is None or name in self._seen or not self._seen:
                steps = getattr(context, "num_inference_steps", None)
                self._begin_evaluation(arguments.get(self._family.timestep), steps)
            self._seen.add(name)
            return self._output(name, args, kwargs)
        except BaseException:
            self._end_interrupted_run()
            raise

    def _output(self, name: str, args: tuple, kwargs: dict):
        """The transformer's result: its tensors are the context's output."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        signature: Hashable = tuple((x.shape, x.dtype, x.device) for x in tensors)
        computed = []

        def forward():
            return self.fn_ref.original_forward(*args, **kwargs)

        def compute() -> tuple[torch.Tensor, ...]:
            dim = self._family.batch_dim or 0
            computed[:] = [blocks.run_blocks(self._run, self._stack, [name], forward, dim)]
            output, self._pack[name] = _unpack(computed[0])
            return output

        output = self._run.output(name, signature, compute, tensors[0].device)
        as_it_is = computed and all(a is b for a, b in zip(_unpack(computed[0])[0], output, strict=True))
        return computed[0] if as_it_is else self._pack[name](output)

    def _begin_evaluation(self, timestep: torch.Tensor | None, steps: int | None) -> None:
        level = timestep if self._run is None else self._run.read_back(timestep)
        if isinstance(level, float) and self._last_level is not None and level > self._last_level:
            self.end_run()
        if self._run is None:
            on_cpu = self._config.cache_device == "cpu"
            offload = Offload(torch.device("cpu") if on_cpu else None)
            self._run = Run(self._config, steps=self._steps or steps, offload=offload)
            self._run.set_budget(int(self._config.cache_budget_gb * 2**30) or None, None)
        self._run.begin_evaluation(level)
        self._last_level = self._run.stats.evaluations[-1].level
        self._seen = set()

    def end_run(self) -> None:
        """Close the run under way, if any, and log what it did."""
        if self._run is not None:
            self._stats, self._run = self._run.close(timed=False), None
            log.info("Foresight %s", self._stats.summary())
        self._last_level = None

    def _end_interrupted_run(self) -> None:
        """The same on the way of an error, which nothing here may hide."""
        stats = self.stats
        try:
            self.end_run()
        except Exception:
            log.warning("Foresight could not read its last measurements", exc_info=True)
            self._stats, self._run, self._last_level = stats, None, None

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.end_run()
        self._contexts.reset()
        return module


def _unpack(result) -> tuple[tuple[torch.Tensor, ...], Callable]:
    """The tensors of a transformer's result, and what makes such a result of others.

    A result is a tensor, a tuple or a diffusers output, and may hold lists and None.
    """
    leaves, form = tree_flatten(result)
    other = {i: x for i, x in enumerate(leaves) if not isinstance(x, torch.Tensor)}
    count = len(leaves)

    def pack(output: tuple[torch.Tensor, ...]):
        rest = iter(output)
        return tree_unflatten([other[i] if i in other else next(rest) for i in range(count)], form)

    return tuple(x for x in leaves if isinstance(x, torch.Tensor)), pack


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
    registry.remove_hook(NAME, recurse=False)
    if (
        not registry.hooks
        and getattr(transformer.__dict__.get("forward"), "__func__", None) is type(transformer).forward
    ):
        del transformer.forward  # diffusers leaves the bound method behind


def apply_foresight(
    transformer: torch.nn.Module, config: Config | None = None, *, steps: int | None = None
) -> ForesightHandle:
    """Make a diffusers transformer faster from the next call on; a Foresight applied before is replaced.

    ```python
    handle = apply_foresight(pipe.transformer, ForecastConfig(threshold=0.5))
    video = pipe("a red ball moving right").frames
    print(handle.stats.summary())
    handle.remove()
    ```

    Args:
        transformer: One of the classes in the table of families.
        config: Settings, `ForecastConfig` or `PaperConfig`; forecast with its defaults when None.
        steps: Denoising steps of a run. Wan's pipeline says it by itself; for the others, without it, the paper's
            automatic warmup lasts until 15 % of the first timestep has passed, and percents are shares of the timestep.

    Raises:
        ImportError: diffusers is older than 0.42.
        UnsupportedModel: the class of `transformer` has no record.
    """
    check_version(diffusers.__version__)
    family_of(transformer, FAMILIES)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    before = registry.get_hook(NAME)
    if before is not None:
        _remove(transformer, before)
    hook = ForesightHook(config or ForecastConfig(), steps)
    registry.register_hook(hook, NAME)
    return ForesightHandle(transformer, hook)
