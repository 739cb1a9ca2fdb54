"""The method "forecast" on models that Foresight knows nothing of: image, audio, 3D, other people's classes."""

import json
import math

import pytest
import torch

pytest.importorskip("comfy", reason="ComfyUI is not installed here")

import comfy.model_sampling
import comfy.patcher_extension
import comfy.utils
import comfy_extras.nodes_custom_sampler as guider_nodes

from foresight import PaperConfig
from foresight.engine import ForecastConfig
from foresight.hosts.blocks import UnsupportedModel
from foresight.hosts.comfyui import apply_foresight
from foresight.hosts.comfyui.conds import is_guided
from foresight.hosts.comfyui.outputs import Parts
from foresight.report import figures
from support.comfy_any import GUIDERS, MODELS, QuantizedPatcher, guided, sample
from support.reference_forecast import Reference

WRAPPERS = comfy.patcher_extension.WrappersMP
NOTHING, MUCH = ForecastConfig(threshold=1e-12), ForecastConfig(threshold=2.8)
VALIDATED = ForecastConfig(threshold=2.8, validate=True)
KNOWN = {"ltx_2"}  # in the table of families, because its blocks are known


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return MODELS[name]()


@pytest.fixture(scope="module")
def plain(model):
    return sample(model)


def left_out(stats):
    return [i for i, e in enumerate(stats.evaluations) if e.kind == "reuse"]


def test_off_and_a_tiny_threshold_are_the_plain_result(model, plain, runs):
    assert torch.isfinite(plain).all() and plain.std() > 0.1
    assert torch.equal(sample(model, apply_foresight(model.patcher, ForecastConfig(threshold=0))), plain) and not runs
    assert torch.equal(sample(model, apply_foresight(model.patcher, NOTHING)), plain)
    assert not runs[0].reused and len(runs[0].evaluations) == 16


def test_forecasts_are_what_the_method_says(model, plain, runs):
    reference = Reference(MUCH.threshold)
    ours, expected = sample(model, apply_foresight(model.patcher, MUCH)), sample(model, reference(model.patcher))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert reference.computed == 16 - len(left_out(runs[0])) + runs[0].taken_back and left_out(runs[0])
    assert torch.equal(sample(model), plain) and not torch.equal(ours, plain)


@pytest.mark.parametrize("guider", GUIDERS)
def test_every_guider(guider, model, runs):
    reference, plain = Reference(MUCH.threshold), guided(model, model.patcher, guider)
    assert torch.equal(guided(model, apply_foresight(model.patcher, NOTHING), guider), plain)
    ours = guided(model, apply_foresight(model.patcher, MUCH), guider)
    torch.testing.assert_close(ours, guided(model, reference(model.patcher), guider), rtol=1e-4, atol=1e-4)
    assert reference.computed == 14 - runs[1].reused + runs[1].taken_back and runs[1].total == 14
    assert runs[1].reused


def test_what_counts_as_guidance():
    """Every guider of ComfyUI but the one of one cond, unless its CFG is 1; and whatever nobody can know."""
    model = MODELS["flux"]()
    basic, cfg, dual = (GUIDERS[name](model.patcher, *map(model.text, (1, 3, 2))).args[0] for name in GUIDERS)
    assert [is_guided(guider) for guider in (basic, cfg, dual)] == [False, True, True]
    dual.set_cfg(1.0, 1.0)
    cfg.set_cfg(1.0)
    assert not is_guided(cfg) and is_guided(dual)

    class Other(type(basic)):  # another pack's
        def predict_noise(self, *args, **kwargs):
            return 2 * super().predict_noise(*args, **kwargs)

    assert is_guided(Other(model.patcher))

    class Outer(type(basic)):
        def outer_predict_noise(self, *args, **kwargs):
            return 2 * super().outer_predict_noise(*args, **kwargs)

    patched = type(basic)(model.patcher)
    patched.predict_noise = lambda *args, **kwargs: None
    assert is_guided(Outer(model.patcher)) and is_guided(patched)
    for function in ("cfg_function", "post_cfg_function", "pre_cfg_function", "calc_cond_batch_function"):
        patched = model.patcher.clone()
        getattr(patched, f"set_model_sampler_{function}")(lambda args: args["denoised"])
        assert is_guided(type(basic)(patched)), function


@pytest.mark.parametrize("guider", [*GUIDERS, "CFG Override"])
def test_few_steps_are_planned_by_what_guides_them(guider, runs):
    model = MODELS["flux"]()
    patcher = apply_foresight(model.patcher, ForecastConfig())
    if guider == "CFG Override":  # a guider of CFG 1, and a node that changes that on the way
        patcher, guider = guider_nodes.CFGOverride.execute(patcher, 5.0, 0.0, 0.7).args[0], "BasicGuider"
        guided(model, patcher, guider, steps=8)
        assert runs[0].inactive
        return
    guided(model, patcher, guider, steps=8)
    assert (runs[0].planned, bool(runs[0].inactive)) == ((6, False) if guider == "BasicGuider" else (None, True))


@pytest.mark.parametrize(("steps", "threshold"), [(8, 0.5), (8, 2.0), (12, 1.0), (4, 8.0), (4, 32.0), (8, 32.0)])
def test_forecasts_of_few_steps_without_guidance_are_what_the_method_says(steps, threshold, runs):
    """With the highest threshold not even the last step is computed."""
    model, reference = MODELS["flux"](), Reference(threshold)
    ours = guided(model, apply_foresight(model.patcher, ForecastConfig(threshold=threshold)), "BasicGuider", steps)
    expected = guided(model, reference(model.patcher), "BasicGuider", steps)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert reference.computed == steps - runs[0].reused + runs[0].taken_back and runs[0].reused
    assert (runs[0].evaluations[-1].kind == "reuse") == (threshold == 32.0)


LOUDEST = 1.2


class Recorder:
    """Sees from outside what a run gives its sampler, and finds out by itself what it should have given.

    Attributes:
        patcher: A clone with the recorder on it, to put Foresight on.
        taken_back: How many evaluations that called the model were done again.
        missed: By evaluation and part, rms(given - real) / rms(x - real) of the worst item, where x is as large as that
            of a flow model; of several parts, none is divided by more than `LOUDEST` times the noise.
        calls: By evaluation, how often the model was called.
    """

    def __init__(self, patcher):
        self.missed, self.calls, self._count, self._shapes = [], [], 0, None
        self.taken_back, self._levels = 0, []
        self.patcher = patcher.clone()
        for kind in (WRAPPERS.OUTER_SAMPLE, WRAPPERS.PREDICT_NOISE, WRAPPERS.APPLY_MODEL):
            self.patcher.add_wrapper_with_key(kind, "recorder", getattr(self, kind))

    def outer_sample(self, executor, *args, latent_shapes=None, **kwargs):
        self._shapes = latent_shapes
        return executor(*args, latent_shapes=latent_shapes, **kwargs)

    def apply_model(self, executor, *args, **kwargs):
        self._count += 1
        return executor(*args, **kwargs)

    def predict_noise(self, executor, x, timestep, *args, **kwargs):
        before = self._count
        given = executor(x, timestep, *args, **kwargs)
        while self._levels and self._levels[-1] <= float(timestep.max()):
            self._levels.pop()
            self.missed.pop()
            self.taken_back += self.calls.pop() > 0
        self._levels.append(float(timestep.max()))
        self.calls.append(self._count - before)
        real = executor.class_obj.predict_noise(x, timestep, *args, **kwargs)  # the guider's own, below all wrappers
        sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
        flow = isinstance(sampling, comfy.model_sampling.CONST)
        alike = x if flow else x / (1 + float(timestep.max()) / sampling.sigma_data)  # as a flow model would have it
        parts = [comfy.utils.unpack_latents(t, self._shapes) for t in (given - real, alike - real)]
        rms = [[part.flatten(1).double().square().mean(1).sqrt() for part in found] for found in parts]
        most = LOUDEST * float(timestep.max()) if len(rms[0]) > 1 else math.inf
        self.missed.append([(a / b.clamp_max(most)).max().item() for a, b in zip(*rms, strict=True)])
        return given


def check_missed(stats, rows, missed):
    """Whether these evaluations of a record say what each part was off."""
    for i in rows:
        row = stats.evaluations[i]
        assert row.missed == pytest.approx(max(missed[i]), rel=1e-3)
        assert row.missed_parts == (pytest.approx(missed[i], rel=1e-3) if len(missed[i]) > 1 else [])


def test_what_is_left_out_is_counted_and_validate_tells_how_far_it_is_off(model, runs):
    recorder, seen = Recorder(model.patcher), Recorder(model.patcher)
    ours = sample(model, apply_foresight(recorder.patcher, MUCH), batch=2)
    validated = sample(model, apply_foresight(seen.patcher, VALIDATED), batch=2)
    assert torch.equal(validated, ours)  # and so was every forecast:
    assert recorder.missed == seen.missed
    without, stats = runs
    gaps = left_out(without)
    assert gaps and left_out(stats) == gaps
    assert [i for i, n in enumerate(recorder.calls) if not n] == gaps and all(seen.calls)
    assert [record.taken_back for record in runs] == [recorder.taken_back] * 2
    for record in runs:
        assert (record.total, record.reused, record.counted) == (16, len(gaps), "outputs")
        assert all((e.computed, e.reused) == ([0], [1]) for i, e in enumerate(record.evaluations) if i in gaps)
        assert all((e.computed, e.reused) == ([1], [0]) for i, e in enumerate(record.evaluations) if i not in gaps)
    assert [without.evaluations[i].missed for i in gaps] == [None] * len(gaps)
    check_missed(stats, gaps, seen.missed)
    assert stats.missed == [stats.evaluations[i].missed for i in gaps]


def test_validate_takes_no_random_numbers_from_the_run(runs):
    """A model that draws some itself, as patches that add noise do, draws the same ones with and without."""
    model = MODELS["third_party"]()

    def restless(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"]) + 0.01 * torch.randn(args["input"].shape)

    model.patcher.set_model_unet_function_wrapper(restless)
    found = []
    for config in (MUCH, VALIDATED):
        torch.manual_seed(1)
        found.append(sample(model, apply_foresight(model.patcher, config)))
    assert torch.equal(*found) and runs[1].missed


def test_the_method_paper_refuses_by_name(name, model):
    if name in KNOWN:
        return
    found = type(model.patcher.model.diffusion_model).__name__
    with pytest.raises(UnsupportedModel, match=f"does not support {found} .*Use the method forecast"):
        apply_foresight(model.patcher, PaperConfig())


# ---- a latent of video and audio


def test_audio_that_changes_faster_than_its_video(runs):
    """Both have an error in the record, of what was computed and of what was left out."""
    model, reference = MODELS["ltx_2"](), Reference(VALIDATED.threshold)
    network = model.patcher.model.diffusion_model
    for p in network.parameters():
        p.data *= 0.4  # so that outputs change little from step to step,
    network.audio_proj_out.weight.data *= 20  # but for the audio's
    recorder = Recorder(model.patcher)
    sample(model, apply_foresight(recorder.patcher, VALIDATED))
    sample(model, reference(model.patcher))
    (stats,) = runs
    gaps = left_out(stats)
    assert stats.parts == ("video", "audio") and len(gaps) > 2
    check_missed(stats, gaps, recorder.missed)
    computed = [e for i, e in enumerate(stats.evaluations) if i and i not in gaps]
    for row, expected in zip(computed, reference.missed, strict=True):
        assert row.missed_parts == pytest.approx(expected, rel=1e-2) and row.missed == max(row.missed_parts)
    for rows in (computed, [stats.evaluations[i] for i in gaps]):
        video, audio = (max(errors) for errors in zip(*(e.missed_parts for e in rows), strict=True))
        assert audio > 1.5 * video > 0
    record = json.loads(json.dumps(stats.to_dict()))
    assert f"(video {video:.2%}, audio {audio:.2%})" in stats.summary() and record["parts"] == ["video", "audio"]
    table = figures.table({"LTX-2": record})
    assert f"at most (video {video:.2%}, audio {audio:.2%})" in table
    assert "LTX-2: forecasts of what was computed missed at most: video " in table


def loud_ltx_2(size: float):
    """LTX-2 whose sound has much larger values than its noise."""
    model = MODELS["ltx_2"]()
    network = model.patcher.model.diffusion_model
    for p in network.parameters():
        p.data *= 0.4
    network.audio_proj_out.weight.data *= size
    return model


@pytest.mark.parametrize(("size", "least"), [(1, 15), (20, 10), (60, 0)])
def test_a_sound_much_larger_than_its_noise_is_no_further_off(size, least, runs):
    """Its values are 1, 3 and 9 times the noise's. Measured in their own size, its error was 0.2, 2.3 and 4.2 %."""
    model, video = loud_ltx_2(size), 16 * 3 * 4 * 4
    plain = sample(model, model.patcher, steps=30)[:, video:]
    sound = sample(model, apply_foresight(model.patcher, ForecastConfig(threshold=1.0)), steps=30)[:, video:]
    assert (sound - plain).norm() <= 0.015 * plain.norm() and runs[0].reused >= least


def test_a_sound_that_is_carried_at_a_larger_scale_is_measured_at_that_scale(runs):
    """As core does with that of MiniMax H3, which says so."""
    if hasattr(comfy.model_sampling, "ModelSamplingAV"):  # not in older ones
        assert comfy.model_sampling.ModelSamplingAV.audio_scale
    for scale in (1.0, 9.0):
        model = loud_ltx_2(60)
        model.patcher.model.model_sampling.audio_scale = scale
        sample(model, apply_foresight(model.patcher, ForecastConfig(threshold=1.0)), steps=30)
    assert runs[1].reused > runs[0].reused + 3


def test_parts_of_which_nobody_knows_what_they_are_have_numbers():
    names = [Parts(shapes).names for shapes in (None, [(1, 16, 3, 4, 4)], [(1, 16, 3, 4, 4), (1, 8, 5, 16)])]
    assert names == [(), (), ("video", "audio")]
    assert Parts([(1, 64, 16), (1, 1, 8)]).names == ("part 1", "part 2")  # points and a camera, as TripoSplat has
    assert Parts([(1, 4, 3, 4, 4)] * 3).names == ("part 1", "part 2", "part 3")


def test_what_the_errors_of_parts_are_measured_in():
    """No more than 1.2 times the noise, 0.5 here, at the scale at which the part is carried; CFG++ has two outputs."""
    latent = torch.zeros(1, 16, 3, 4, 4), torch.zeros(1, 8, 16)
    outputs = torch.full((1, 16, 3, 4, 4), 3.0), torch.full((1, 8, 16), 2.0)
    for scale, expected in ((1.0, [0.6, 0.6]), (4.0, [0.6, 2.0])):
        parts = Parts([x.shape for x in latent], scale)
        outputs = tuple(x.flatten(1).unsqueeze(1) for x in outputs)
        found = parts.unit(torch.zeros(1, 1, sum(x.numel() for x in latent)), 1.0, 0.5, outputs * 2)
        assert [float(x.abs().mean()) for x in found] == pytest.approx(expected * 2)
    assert float(Parts(None).unit(0 * outputs[0], 1.0, 0.5, outputs[:1])[0].abs().mean()) == 3.0


# ---- an image model's own ways to be sampled


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("dpmpp_2m", "karras"),
        ("dpmpp_2m_sde", "karras"),
        ("dpmpp_3m_sde", "exponential"),
        ("euler_ancestral", "normal"),
        ("ddim", "ddim_uniform"),
        ("uni_pc", "sgm_uniform"),
        ("heun", "simple"),
        ("lcm", "sgm_uniform"),
    ],
)
@pytest.mark.parametrize("name", ["sdxl", "sdxl_v"], indirect=True)
def test_samplers_of_models_that_predict_noise_or_v(sampler, scheduler, model, runs):
    how, reference = {"sampler": sampler, "scheduler": scheduler}, Reference(MUCH.threshold)
    ours = sample(model, apply_foresight(model.patcher, MUCH), **how)
    torch.testing.assert_close(ours, sample(model, reference(model.patcher), **how), rtol=1e-4, atol=1e-3)
    assert reference.computed == len(runs[0].evaluations) - runs[0].reused + runs[0].taken_back
    if not runs[0].reused:  # noise in each step: what the plan before the run meant to leave out, it could not
        assert runs[0].planned < 16 and "every step was worth computing" in runs[0].summary()


# ---- several models, and other people's patchers


def test_two_nodes_in_one_graph_do_not_disturb_each_other(runs):
    models = [MODELS["sdxl_edm"](), MODELS["flux"]()]
    alone = [sample(model, apply_foresight(model.patcher, MUCH)) for model in models]
    patched = [apply_foresight(model.patcher, config) for model, config in zip(models, (MUCH, VALIDATED), strict=True)]
    for turn in (0, 1, 1, 0):
        assert torch.equal(sample(models[turn], patched[turn]), alone[turn])
    inside = []

    def other(step, *_):  # as a preview or a detailer that samples with the other model in the middle of a run
        inside.append(sample(models[1], patched[1]) if step in (3, 8) else alone[1])

    assert torch.equal(sample(models[0], patched[0], callback=other), alone[0])
    assert len(inside) == 16 and all(torch.equal(found, alone[1]) for found in inside)
    assert len({tuple(left_out(stats)) for stats in runs}) == 2  # a plan each, by what each model's outputs do
    assert [bool(stats.missed) for stats in runs] == [False, False, False, True, True, False, True, True, False]


def test_a_quantized_models_own_patcher_goes_on(runs):
    model = MODELS["quantized"]()
    patched = apply_foresight(model.patcher, MUCH)
    assert type(patched) is QuantizedPatcher and patched.on_device
    with_lora, without = sample(model, patched), MODELS["quantized"](lora=False)
    assert not torch.equal(sample(without, apply_foresight(without.patcher, MUCH)), with_lora)
    assert all(stats.reused for stats in runs)
