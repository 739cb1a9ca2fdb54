"""Foresight in diffusers: one hook on the transformer, in diffusers' own registry."""

import inspect
import logging
from collections.abc import Callable

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import StateManager

from ...engine import ForesightConfig, RunStats, Session
from ..families import DIFFUSERS, Swapped, family_of

NAME = "foresight"

log = logging.getLogger(__name__)


class ForesightHook(ModelHook):
    """Runs the transformer with its blocks' forwards swapped. A run ends when the pipeline resets its stateful hooks.

    A run that never got there (an interrupt, a hand-written loop) ends when the timestep rises again.
    """

    _is_stateful = True

    def __init__(self, config: ForesightConfig, steps: int | None):
        super().__init__()
        self._config, self._steps = config, steps
        self._contexts = StateManager(dict)  # diffusers tells stateful hooks' state managers which context a call is in
        self._session: Session | None = None
        self._stats: RunStats | None = None
        self._last_level: float | None = None
        self._seen: set[str] = set()  # contexts of the present evaluation
        self._pack: dict[str, Callable] = {}  # per context, from the tensors of a result to the result

    @property
    def stats(self) -> RunStats | None:
        """The run under way, else the last one, else None."""
        return self._session.stats if self._session is not None else self._stats

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        family = family_of(module, DIFFUSERS)
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
        if self._session is None or name in self._seen or not self._seen:
            self._begin_evaluation(arguments.get(self._family.timestep), getattr(context, "num_inference_steps", None))
        self._seen.add(name)
        if self._config.method == "forecast" and self._session.kind != "plain":
            return self._forecast(name, args, kwargs)
        call = self._session.begin_call([name], len(self._stack), self._family.batch_dim or 0)
        try:
            with Swapped(self._stack, call):
                result = self.fn_ref.original_forward(*args, **kwargs)
            if call.finish():
                return result
            with Swapped(self._stack, call.retry()):
                return self.fn_ref.original_forward(*args, **kwargs)
        except BaseException:
            self._session = None  # an interrupted run leaves nothing behind
            raise

    def _forecast(self, name: str, args: tuple, kwargs: dict):
        """The transformer's result, forecast or computed: its tensors are the context's output."""
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        signature = tuple((x.shape, x.dtype, x.device) for x in tensors)

        def compute() -> tuple[torch.Tensor, ...]:
            self._session.count_call(len(self._stack), 1)
            result = self.fn_ref.original_forward(*args, **kwargs)
            output, self._pack[name] = _unpack(result)
            return output

        try:
            output = self._session.output(name, signature, compute, tensors[0].device)
            return self._pack[name](output)
        except BaseException:
            self._session = None  # an interrupted run leaves nothing behind
            raise

    def _begin_evaluation(self, timestep: torch.Tensor | None, steps: int | None) -> None:
        level = timestep if self._session is None else self._session.read_back(timestep)
        if isinstance(level, float) and self._last_level is not None and level > self._last_level:
            self.end_run()
        if self._session is None:
            self._session = Session(
                self._config,
                steps=self._steps or steps,
                home=torch.device("cpu") if self._config.cache_device == "cpu" else None,
            )
            self._session.set_budget(int(self._config.cache_budget_gb * 2**30) or None, None)
        self._session.begin_evaluation(level)
        self._last_level = self._session.stats.evaluations[-1].level
        self._seen = set()

    def end_run(self) -> None:
        """Close the run under way, if any, and log what it did."""
        if self._session is not None:
            self._stats, self._session = self._session.close(timed=False), None
            log.info("Foresight %s", self._stats.summary())
        self._last_level = None

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.end_run()
        self._contexts.reset()
        return module


def _unpack(result) -> tuple[tuple[torch.Tensor, ...], Callable]:
    """The tensors of a transformer's result, a tuple or a diffusers output, and what makes such a result of them."""
    if not isinstance(result, tuple):
        names = list(result.keys())
        return result.to_tuple(), lambda output: type(result)(**dict(zip(names, output, strict=True)))

    def pack(output: tuple[torch.Tensor, ...]) -> tuple:
        rest = iter(output)
        return tuple(next(rest) if there else None for there in present)

    present = [x is not None for x in result]
    return tuple(x for x in result if x is not None), pack


class ForesightHandle:
    """What `apply_foresight` returns: `stats` of the run under way or the last one, and `remove()`."""

    def __init__(self, transformer: torch.nn.Module, hook: ForesightHook):
        self._transformer, self._hook = transformer, hook

    @property
    def stats(self) -> RunStats | None:
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
    transformer: torch.nn.Module, config: ForesightConfig | None = None, *, steps: int | None = None
) -> ForesightHandle:
    """Reuse blocks of a diffusers transformer from the next call on; a Foresight applied before is replaced.

    ```python
    handle = apply_foresight(pipe.transformer, ForesightConfig(threshold=0.5))
    video = pipe("a red ball moving right").frames
    print(handle.stats.summary())
    handle.remove()
    ```

    Args:
        transformer: One of the classes in `families.DIFFUSERS`.
        config: Settings; the defaults when None.
        steps: Denoising steps of a run, which sets the length of warmup. Wan's pipeline says it by itself; for the
            others, without it, automatic warmup lasts until 15 % of the first timestep has passed, and percents are
            shares of the timestep.

    Raises:
        UnsupportedModel: the class of `transformer` has no record.
    """
    family_of(transformer, DIFFUSERS)
    config = config or ForesightConfig()
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    before = registry.get_hook(NAME)
    if before is not None:
        _remove(transformer, before)
    hook = ForesightHook(config, steps)
    registry.register_hook(hook, NAME)
    return ForesightHandle(transformer, hook)
