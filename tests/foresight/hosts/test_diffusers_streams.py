"""Which evaluation a call belongs to: an evaluation is not a call, whatever a pipeline says or does not say."""

import inspect

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")

import diffusers
from diffusers.hooks.hooks import CacheContext, _set_cache_context

from foresight import ForecastConfig, PaperConfig
from foresight.hosts import blocks
from foresight.hosts.diffusers import apply_foresight, families
from foresight.hosts.diffusers.latents import Latents, channels_of, conds_in, latents_of
from foresight.hosts.diffusers.outputs import View
from foresight.hosts.diffusers.streams import Streams
from support.diffusers_models import seeded
from support.diffusers_transformers import TRANSFORMERS, minimax_h3, mochi, wan

STEPS = 14
TEXTS = ("encoder_hidden_states", "input_ids")


@pytest.fixture(scope="module", params=TRANSFORMERS, ids=lambda make: make.__name__)
def transformer(request):
    return request.param()


class Asked(Exception):
    pass


def arguments_of(transformer, x, t):
    """What the transformer would be called with."""
    model, signature = transformer.model, inspect.signature(type(transformer.model).forward)

    def note(*args, **kwargs):
        raise Asked(signature.bind_partial(model, *args, **kwargs).arguments)

    before = model.__dict__.get("forward")
    model.forward = note
    try:
        transformer.call(x, t)
    except Asked as asked:
        return {name: value for name, value in asked.args[0].items() if name != "self"}
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def for_other_text(given):
    """The same call for another cond."""
    name = next(name for name in TEXTS if name in given)
    text = given[name]
    return {**given, name: text.flip(0) if name == "input_ids" else text * -0.5}


def guided_loop(transformer, steps=STEPS, copies=False, contexts=False, guidance=3.0):
    """Cond and uncond, the same latent for both or a copy for each, the latent changed in place."""
    model = transformer.model
    family = blocks.family_of(model, families.FAMILIES)
    found = [arguments_of(transformer, seeded(*transformer.latent, seed=3), torch.tensor([1000.0 * (1 - i / steps)]))
             for i in range(steps)]  # fmt: skip
    latents = [x.clone() for x in latents_of(family, found[0])]
    with torch.no_grad():
        for given in found:
            calls = []
            for which, call in (("cond", given), ("uncond", for_other_text(given))):
                values = iter([x.clone() if copies else x for x in latents])
                named = {
                    name: ([next(values)] if isinstance(call[name], list) else next(values))
                    for name in family.latents
                    if call.get(name) is not None
                }
                _set_cache_context(model, CacheContext(which) if contexts else None)
                calls.append([x for x in _flat(model(**{**call, **named}))])
            for x, cond, uncond in zip(latents, *calls, strict=True):
                part = tuple(slice(0, min(n, m)) for n, m in zip(x.shape, cond.shape, strict=True))
                v = (uncond + guidance * (cond - uncond))[part]
                x[part] += (1 if family.rises else -1) * v / steps
    _set_cache_context(model, None)
    return latents


def _flat(result):
    result = [result] if isinstance(result, torch.Tensor) else result
    entries = result.values() if isinstance(result, dict) else result
    return [x for entry in entries for x in (entry if isinstance(entry, list) else [entry]) if x is not None]


@pytest.mark.parametrize("copies", [False, True])
def test_conds_without_a_context_are_told_apart(transformer, copies):
    stack = blocks.family_of(transformer.model, families.FAMILIES).stack(transformer.model)
    steps = 8
    plain = guided_loop(transformer, steps, copies=copies)
    for config in (ForecastConfig(threshold=1e-12), PaperConfig(threshold=1e-12, warmup_steps=3)):
        handle = apply_foresight(transformer.model, config, steps=steps)
        ours = guided_loop(transformer, steps, copies=copies)
        handle.remove()
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
        counted = len(stack) if config.by_block else 1
        assert len(handle.stats.evaluations) == steps and handle.stats.total == 2 * steps * counted


def test_conds_without_a_context_are_those_with(transformer):
    runs = []
    for contexts in (True, False):
        handle = apply_foresight(transformer.model, ForecastConfig(threshold=2.0), steps=30)
        latents = guided_loop(transformer, steps=30, contexts=contexts)
        handle.remove()
        runs.append((latents, [e.kind for e in handle.stats.evaluations]))
    assert runs[0][1] == runs[1][1] and "reuse" in runs[0][1]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_video_to_video_keeps_its_guidance(guidance):
    net = wan().model
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = diffusers.WanVideoToVideoPipeline(None, None, net, None, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def video():
        return pipe(
            latents=seeded(1, 4, 3, 8, 8, seed=5), prompt_embeds=seeded(1, 6, 16, seed=1),
            negative_prompt_embeds=seeded(1, 6, 16, seed=2), num_inference_steps=30, strength=0.8,
            guidance_scale=guidance, output_type="latent", height=64, width=64,
        ).frames  # fmt: skip

    plain = video()
    handle = apply_foresight(net, ForecastConfig())
    ours = video()
    handle.remove()
    assert len(handle.stats.evaluations) == 24
    assert (ours - plain).norm() < 0.05 * plain.norm()


def test_streams_by_what_is_asked():
    """A Heun step, tiles of one latent, three conds, and an interrupted sequence."""

    def sequence(*calls):
        streams = Streams()
        return [streams.of_call(None, torch.tensor([t]), {"text": text.clone()}) for t, text in calls]

    cond, uncond, third = (seeded(1, 4, 8, seed=i) for i in range(3))
    assert sequence((9.0, cond), (9.0, uncond), (8.0, cond), (8.0, uncond)) == [
        ("0", True), ("1", False), ("0", True), ("1", False),
    ]  # fmt: skip
    heun = sequence((9.0, cond), (8.0, cond), (8.0, cond), (7.0, cond))
    assert heun == [("0", True)] * 4
    assert [name for name, _ in sequence((9.0, cond), (9.0, uncond), (9.0, third), (8.0, cond))] == ["0", "1", "2", "0"]
    ends = sequence((9.0, uncond), (9.0, cond), (8.0, uncond), (8.0, cond), (7.0, cond), (6.0, cond), (6.0, uncond))
    assert [name for name, _ in ends] == ["0", "1", "0", "1", "1", "1", "0"]  # guidance ends, and begins again
    shorter = seeded(1, 3, 8, seed=4)
    assert sequence((9.0, cond), (9.0, shorter), (8.0, cond)) == [("0", True), ("1", False), ("0", True)]


def test_streams_of_a_loop_that_writes_its_arguments_in_place():
    streams, t, text = Streams(), torch.zeros(1), torch.zeros(1, 4, 8)
    found = []
    for level in (9.0, 8.0):
        for seed in (0, 1):
            t.fill_(level)
            text.copy_(seeded(1, 4, 8, seed=seed))
            found.append(streams.of_call(None, t, {"text": text}))
    assert found == [("0", True), ("1", False)] * 2


def test_contexts_of_guidance_that_begins_in_mid_run():
    """A context that was absent belongs to the evaluation whose noise level it has, whichever cond comes first."""
    streams = Streams()
    calls = ["9 c", "8 c", "7 u", "7 c", "6 u", "6 c", "5 c", "4 c", "3 u", "3 c"]
    begins = [streams.of_call(call[2], torch.tensor([float(call[0])]), {})[1] for call in calls]
    assert begins == [True, True, True, False, True, False, True, True, True, False]


def test_contexts_with_more_rows_than_others_are_of_one_evaluation():
    """LTX-2 stacks cond and uncond, and calls once more for its other guidance."""
    streams = Streams()
    calls = [(t, name, rows) for t in (9.0, 8.0) for name, rows in (("cond_uncond", 2), ("uncond_stg", 1))]
    begins = [streams.of_call(name, torch.full((rows,), t), {})[1] for t, name, rows in calls]
    assert begins == [True, False, True, False]


def test_a_stream_that_was_away_starts_anew():
    streams, text = Streams(), {"text": seeded(1, 4, 8, seed=0)}
    for t in (9.0, 8.0, 7.0, 6.0):
        streams.of_call("cond", torch.tensor([t]), text)
        if t != 7.0:
            streams.of_call("uncond", torch.tensor([t]), text)
    assert streams.breaks("cond") == 0 and streams.breaks("uncond") == 1


@pytest.mark.parametrize("contexts", [["c", "u", "c"], [None, None, None]], ids=["contexts", "none"])
def test_a_cond_that_is_asked_for_again_with_the_same_latent_is_a_stream_of_its_own(contexts):
    """Skip layer guidance, for a part of the run; and Heun's second evaluation, whose latent is another, is none."""
    cond, uncond = seeded(1, 4, 8, seed=1), seeded(1, 4, 8, seed=2)
    streams, found = Streams(), []
    for t in (9.0, 8.0, 7.0):
        x = seeded(1, 2, 4, 4, seed=int(t))
        calls = list(zip(contexts, (cond, uncond, cond), strict=True))[: 3 if t > 7 else 2]
        found.append([streams.of_call(c, torch.tensor([t]), {"text": text}, [x]) for c, text in calls])
    assert [[begins for _, begins in calls] for calls in found] == [[True, False, False]] * 2 + [[True, False]]
    names = [[name for name, _ in calls] for calls in found]
    assert names[0] == names[1] and len(set(names[0])) == 3 and names[2] == names[0][:2]
    x = seeded(1, 2, 4, 4, seed=3)  # a latent that does not move in a step (CFG-Zero* at first)
    standing = [streams.of_call(contexts[0], torch.tensor([t]), {"text": cond}, [x]) for t in (6.8, 6.6, 6.4)]
    assert standing == [(names[0][0], True)] * 3
    for _ in range(200):  # a loop that measures
        streams.of_call(contexts[0], torch.tensor([6.2]), {"text": cond}, [x])
    assert len(streams._last) <= 12
    again = [streams.of_call(contexts[0], torch.tensor([6.0]), {"text": cond}, [seeded(1, 2, seed=s)]) for s in (1, 2)]
    assert again == [(names[0][0], True)] * 2


@pytest.mark.parametrize("alike", [True, False])
def test_two_conds_that_are_the_same_are_two_streams(alike):
    """A prompt that is its own negative. In the first step nothing shows yet that this is no loop that measures."""
    cond = seeded(1, 4, 8, seed=1)
    uncond = cond.clone() if alike else seeded(1, 4, 8, seed=2)
    streams, found = Streams(), []
    for t in range(9, 3, -1):
        x = seeded(1, 2, 4, 4, seed=t)
        found += [streams.of_call(None, torch.tensor([float(t)]), {"text": text}, [x]) for text in (cond, uncond)]
    assert found[0] == ("0", True) and found[1] == (("0", True) if alike else ("1", False))
    assert found[2:] == [("0", True), ("1", False)] * 5
    assert streams.breaks("0") == streams.breaks("1") == 0


def test_no_device_is_read_for_it_once_a_latent_has_moved(monkeypatch):
    asked = []
    monkeypatch.setattr(Streams, "_asks_again", lambda self, context, latents: asked.append((context, latents)))
    for contexts in (["c", "u"], [None]):
        streams, text = Streams(), seeded(1, 4, 8, seed=1)
        for t in range(9, 3, -1):
            for context in contexts:
                streams.of_call(context, torch.tensor([float(t)]), {"text": text}, [seeded(1, 2, seed=t)])
    assert len([context for context, _ in asked if context is None]) == 1  # with contexts none is read


@pytest.mark.parametrize("context", ["cond", None])
def test_what_stays_the_same_and_then_does_not_is_a_break(context):
    """A pipeline's prompt is one tensor for all steps; what a ControlNet gives is another in each of them."""
    streams, prompt, breaks = Streams(), seeded(1, 4, 8, seed=0), []
    for t in range(9, 0, -1):
        if t == 5:
            prompt = seeded(1, 4, 8, seed=1)
        if t == 3:
            prompt.mul_(2)
        given = {"text": prompt, "residuals": [torch.full((1, 2), float(t))]}
        name, _ = streams.of_call(context, torch.tensor([float(t)]), given)
        breaks.append(streams.breaks(name))
    assert breaks == [0, 0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("rows", "conds"), [([0, 0], 2), ([0, 1], 1), ([0, 1, 0, 1], 2), ([0, 0, 0], 3), ([0], 1)])
def test_conds_in_one_batch(rows, conds):
    latents = [seeded(1, 2, 3, seed=10 + i) for i in range(2)]
    assert conds_in((torch.cat([latents[i] for i in rows]),)) == conds


def test_videos_that_begin_with_the_same_noise_are_no_conds_of_one_batch():
    latents, x, y = Latents(), *(seeded(1, 2, 3, seed=i) for i in range(2))
    latents.begin("cond", (torch.cat([x, x]),))
    assert latents.conds("cond", (torch.cat([x, x]),)) == 2
    (one,) = latents.begin("cond", (torch.cat([x, y]),))
    assert latents.conds("cond", (torch.cat([x, y]),)) == 1 and len(one) == 2
    latents.look("uncond", (torch.cat([x, y]),))
    assert latents.begin("cond", (torch.cat([y, x]),)) is not None


@pytest.mark.parametrize("other", [seeded(1, 2, 3, seed=1), seeded(1, 1, 3, seed=0)], ids=["values", "shape"])
def test_calls_for_different_latents_share_none(other):
    latents, x = Latents(), seeded(1, 2, 3, seed=0)
    assert latents.begin("0", (x,)) is not None
    latents.look("1", (other,))
    assert latents.begin("0", (x,)) is None


def test_mochi_s_timestep_rises_and_yet_it_is_one_run():
    transformer = mochi()
    handle = apply_foresight(transformer.model, ForecastConfig(threshold=2.0), steps=STEPS)
    guided_loop(transformer)
    handle.remove()
    assert len(handle.stats.evaluations) == STEPS
    assert handle.stats.evaluations[0].level == 1000 and handle.stats.reused


def test_only_parts_are_measured_in_no_more_than_the_noise():
    """Several latents may be the items of a list, as Z-Image takes them: those are measured in their own size."""
    latents, outputs = tuple(torch.zeros(1, 4, 8) for _ in "ab"), tuple(torch.full((1, 4, 8), 3.0) for _ in "ab")
    for several, expected in ((False, 3.0), (True, 0.6)):
        view = View(latents, 1, 0.5, several)
        assert view.fits(outputs) and [float(x.abs().mean()) for x in view.unit(outputs)] == pytest.approx(
            [expected] * 2
        )


def test_minimax_h3_on_its_own_schedulers_is_one_run():
    """Its timestep rises from 0 to 1 and its velocity leads to the video; video and audio have a schedule each."""
    h3, steps = minimax_h3(), 20
    for p in h3.model.parameters():
        p.data *= 0.3  # so that outputs change little from step to step
    given = arguments_of(h3, seeded(*h3.latent, seed=3), torch.tensor([1000.0]))
    names = "hidden_states", "audio_hidden_states"
    schedulers = [diffusers.MiniMaxH3Scheduler(shift=shift) for shift in (12.0, 3.0)]

    def sampled():
        for scheduler in schedulers:
            scheduler.set_timesteps(steps + 1)
        x = {name: given[name].clone() for name in names}
        rows = torch.cat([torch.zeros(54), torch.ones(5)]).long()  # text and video, audio
        with torch.no_grad():
            for times in zip(*(scheduler.timesteps for scheduler in schedulers), strict=True):
                order = torch.stack(times).sort().indices
                moment = {"timestep": torch.stack(times)[order], "timestep_indices": order.argsort()[rows]}
                out = h3.model(**{**given, **x, **moment, "return_dict": False})
                for name, scheduler, t, v in zip(names, schedulers, times, out, strict=True):
                    x[name] = scheduler.step(v, t, x[name], return_dict=False)[0]
        return x

    plain = sampled()
    handle = apply_foresight(h3.model, ForecastConfig(threshold=1.0), steps=steps)
    ours = sampled()
    handle.remove()
    stats = handle.stats
    assert len(stats.evaluations) == steps and stats.parts == ("video", "audio") and stats.reused > steps / 3
    assert [e.level for e in stats.evaluations] == pytest.approx(schedulers[0].sigmas[:-1].tolist(), abs=1e-6)
    for name in names:
        assert (ours[name] - plain[name]).norm() < 0.05 * plain[name].norm()


@pytest.mark.parametrize("shape", [(2, 8, 6, 6), (2, 3, 8, 6, 6)], ids=["InstructPix2Pix", "SVD"])
def test_conds_are_told_by_the_channels_that_are_sampled(shape):
    """What else a model takes to guide it, an image's latent that is 0 for the uncond, does not keep conds apart."""

    class Model:
        class config:
            in_channels, out_channels = 8, 4

    family = families.DiffusersFamily("x", "x", (), latents=("sample",), flow=False)
    noisy, image = (seeded(1, *shape[1:], seed=seed).narrow(-3, 0, 4) for seed in (1, 2))
    joined = torch.cat([torch.cat([noisy, image], -3), torch.cat([noisy, 0 * image], -3)])
    (latent,) = latents_of(family, {"sample": joined}, channels_of(Model))
    assert conds_in((joined,)) == 1 and conds_in((latent,)) == 2 and torch.equal(latent[:1], noisy)
    Model.config.out_channels = 8
    assert channels_of(Model) is None and channels_of(object()) is None
    assert latents_of(family, {"sample": seeded(1, 8, 8, 8, seed=1)}, (8, 4))[0].shape == (
        1,
        8,
        8,
        8,
    )  # which are they?
