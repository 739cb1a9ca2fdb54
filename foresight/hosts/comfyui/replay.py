"""Starting a sampler again with better outputs in place of forecasts, so that nobody but the sampler notices."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping

import comfy.k_diffusion.sampling
import comfy.patcher_extension
import torch
from tqdm.auto import tqdm

from ...engine import Restart, Run
from ...engine.tensors import random_numbers
from .outputs import Parts, SamplerFunctions
from .wrappers import Wrapper

KEY = "foresight_replay"
WrappersMP = comfy.patcher_extension.WrappersMP


def takes_euler_steps(sampler: object, denoise_mask: torch.Tensor | None) -> bool:
    """Whether forecasts can be paid back to a sampler without starting it again."""
    options, function = getattr(sampler, "extra_options", {}), _function_of(sampler)
    euler = function is inspect.unwrap(comfy.k_diffusion.sampling.sample_euler) and not options.get("s_churn")
    return euler and denoise_mask is None  # with a mask, the model's latent is not the sampler's


def amplification(sampler: object) -> float:
    """What a sampler of high order makes of an error that is there in every other output, over what Euler makes of it.

    It is the sum of the absolute weights of the outputs in one step: (55 + 59 + 37 + 9) / 24 for four of them, by Adams
    and Bashforth. The samplers of CFG++ take a whole output in each step, of which Euler's takes its share.
    """
    return max(_WEIGHTS.get(name, 1.0) for name, _ in _within(sampler))


def order(sampler: object) -> int:
    """How many outputs a step goes by, where a sampler makes so much of the last ones that they have to be computed.

    UniPC's predictor and corrector go by three. Before the last steps of 20, these have weights of 0.4, -0.6 and 0.6 in
    the latent, where Euler's newest has 0.2. Samplers of order 2 have nothing like it but in the last step, which is
    computed.
    """
    return max(_ORDERS.get(name, 1) for name, _ in _within(sampler))


def most_taken(sampler: object) -> float:
    """How much more than Euler's step a step takes of an output at most, where the sampler renews the noise.

    Of an ancestral sampler that is twice at an eta of 1, as its step goes down to sigma'^2 / sigma before it adds
    noise. Others make more of an error, with the noise, and a few never get over one (`lcm`, `dpmpp_3m_sde`).
    """
    etas = [options.get("eta", 1.0) for name, options in _within(sampler) if name in _ANCESTRAL]
    return 1.0 + max(1.0, *map(float, etas)) if etas else math.inf


def is_adaptive(sampler: object) -> bool:
    """Whether a sampler chooses its noise levels by how outputs differ."""
    return any("adaptive" in name for name, _ in _within(sampler))


def _within(sampler: object, depth: int = 4) -> Iterator[tuple[str, Mapping]]:
    """Names and options of a sampler's function and of those that it runs (Detail Daemon's has one in its options)."""
    options, function = getattr(sampler, "extra_options", None) or {}, _function_of(sampler)
    yield getattr(function, "__name__", ""), options
    for name in _named_by(function):
        yield name, options
    for value in options.values() if depth else ():
        for inner in value if isinstance(value, (list, tuple)) else (value,):
            if hasattr(inner, "sampler_function"):
                yield from _within(inner, depth - 1)


def _named_by(function: Callable | None) -> Iterator[str]:
    """The name of core's sampler that another pack's function calls, if it names one (Impact's do, for other noise)."""
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    if not getattr(function, "__module__", "").startswith("comfy."):
        found = [name for name in names if name.startswith("sample_") and hasattr(comfy.k_diffusion.sampling, name)]
        yield from found if len(found) == 1 else ()


def _function_of(sampler: object) -> Callable | None:
    """What is inside of a decorator that only watches; `moves` would find one that changes the steps."""
    function = getattr(sampler, "sampler_function", None)
    return inspect.unwrap(function) if callable(function) else None


_WEIGHTS = {
    "sample_lms": 160 / 24,
    "sample_ipndm": 160 / 24,
    "sample_ipndm_v": 160 / 24,
    "sample_deis": 44 / 12,
    # it goes by differences of three outputs, which new noise has made large: 21 to 28 dB where 1.2x was gained
    "sample_dpmpp_3m_sde": 2.0,
    "sample_dpmpp_3m_sde_gpu": 2.0,
    # these two take in all of the guided output and, with the other sign, nearly all of the unguided one
    "sample_euler_cfg_pp": 2.0,
    "sample_euler_ancestral_cfg_pp": 2.0,
    # they go by differences of the unguided output, of which too little is known: 26 to 29 dB where 1.4x was gained
    "sample_dpmpp_2m_cfg_pp": math.inf,
    "sample_res_multistep_cfg_pp": math.inf,
    "sample_gradient_estimation_cfg_pp": math.inf,
}


_ANCESTRAL = "sample_euler_ancestral", "sample_euler_ancestral_cfg_pp", "sample_exp_heun_2_x0_sde"
_ORDERS = {"sample_unipc": 3, "sample_unipc_bh2": 3}


class Replay(Wrapper):
    """The two wrappers that start a sampler again when the run asks for it.

    Around the model it is outermost, so that other wrappers do not see what is answered from the tape. Around the
    sampler it is innermost, so that they see one sampler run.

    Args:
        run: The engine's.
        parts: Of the latent.
        functions: Of the sampler; they are called in a replayed evaluation too.
    """

    def __init__(self, run: Run, parts: Parts, functions: SamplerFunctions):
        self._run, self._parts, self._functions = run, parts, functions
        self._samplers = 0  # that were begun
        self._inside = False  # the wrapper around the sampler; a guider of another pack may not call it
        self._options: dict = {}  # that the sampler has used last
        self._go_on: Callable[[], None] | None = None  # random numbers as they were before the last start

    def install(self, options: dict) -> None:
        """Put the wrappers into a clone of model options, behind and before all others."""
        add = comfy.patcher_extension.add_wrapper_with_key
        add(WrappersMP.SAMPLER_SAMPLE, KEY, self._sampler_sample, options, is_model_options=True)
        add(WrappersMP.PREDICT_NOISE, KEY, self._predict_noise, options, is_model_options=True)
        wrappers = options["transformer_options"]["wrappers"]
        others = wrappers[WrappersMP.PREDICT_NOISE]
        wrappers[WrappersMP.PREDICT_NOISE] = {KEY: others.pop(KEY), **others}

    def _sampler_sample(
        self,
        executor,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        self._samplers += 1
        if self._samplers > 1:  # another pack's wrapper samples in rounds; the tape is of the first
            self._run.restart_no_more("the sampler is called several times in one run")
        begin = random_numbers(noise.device)  # not every sampler has a seed of its own
        options = dict(extra_args["model_options"])  # for all starts; the guider's own stay as they are
        found, self._inside = {**options, **_functions_in(options)}, True
        try:
            with tqdm(total=len(sigmas) - 1, disable=disable_pbar) as bar:  # the sampler's own would begin again
                seen = _Progress(callback, bar)
                while True:
                    latent = None if latent_image is None else latent_image.clone()  # samplers may write into these
                    _begin_again(options, found, self._options)
                    given = {**extra_args, "model_options": options}
                    args = model_wrap, sigmas, given, seen.start(), noise.clone(), latent, denoise_mask, True
                    try:
                        return executor(*args)
                    except Restart:
                        self._go_on = random_numbers(noise.device)
                        begin()
        finally:
            self._inside, self._options = False, {}

    def _predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        options = model_options or {}
        if not self._inside:
            return executor(x, timestep, options, seed)
        self._options = options
        given = self._run.answer(timestep, self._parts.made(x))
        if given is not None:
            return self._replayed(executor.class_obj, options, given, timestep, x)
        if self._go_on is not None:  # what was answered has drawn no numbers, as patches of the model may
            self._go_on()
            self._go_on = None
        result = executor(x, timestep, options, seed)
        if isinstance(result, torch.Tensor):
            latents = (result, *self._functions.given)
            self._run.give(tuple(part for latent in latents for part in self._parts.split(latent)))
        return result

    def _replayed(self, guider, options: dict, given: tuple, timestep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        result, *latents = self._parts.join(given)
        functions = self._functions.among(options, guider)
        if functions and latents:
            self._functions.call(functions, tuple(latents), timestep, x)
        return result


class _Progress:
    """Passes on each report of the sampler once, however often it is started."""

    def __init__(self, callback: Callable | None, bar: tqdm):
        self._callback, self._bar = callback, bar
        self._passed = self._reports = 0

    def start(self) -> Callable:
        """The callback for a sampler that begins."""
        self._reports = 0
        return self._report

    def _report(self, step: int, *args) -> None:
        self._reports += 1
        if self._reports <= self._passed:
            return
        self._passed = self._reports
        self._bar.update(step + 1 - self._bar.n)
        if self._callback is not None:
            self._callback(step, *args)


def _functions_in(model_options: dict) -> dict:
    """The functions among options, which a sampler may replace by its own, and its lists of them, as copies."""
    functions = ((k, v) for k, v in model_options.items() if k.startswith("sampler_") or callable(v))
    return {key: list(value) if isinstance(value, list) else value for key, value in functions}


def _begin_again(model_options: dict, found: dict, last: dict) -> None:
    """Make options what they were when the sampler began, but for what guidance nodes have written there since.

    Args:
        model_options: That the sampler is given.
        found: As they were.
        last: Those that it has used, which may be a copy of its own.
    """
    functions = _functions_in(model_options).keys() | _functions_in(last).keys()
    written = {key: value for key, value in {**model_options, **last}.items() if key not in functions}
    model_options.clear()
    model_options.update({**found, **written, **_functions_in(found)})
