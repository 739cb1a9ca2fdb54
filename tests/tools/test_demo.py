import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from models.demo import codec, model, prompt
from tools.demo import big, clips, evaluate
from tools.demo import run as demo


def test_the_codec_is_orthonormal_and_lossless():
    torch.testing.assert_close(codec.BASIS @ codec.BASIS.T, torch.eye(12))
    video = torch.rand(2, 3, 6, 4, 3)
    latent = codec.encode(video)
    assert latent.shape == (2, 12, 3, 3, 2)
    torch.testing.assert_close(codec.decode(latent), video)
    assert latent.norm().item() == pytest.approx((video * 2 - 1).norm().item(), rel=1e-5)


def test_the_codec_refuses_what_it_cannot_code():
    with pytest.raises(ValueError, match="video is 5x6 with 3 channels: needs even sides"):
        codec.encode(torch.rand(1, 1, 6, 5, 3))
    with pytest.raises(
        ValueError, match=r"latent of shape \(1, 16, 1, 2, 2\): the demo codec decodes \(B, 12, T, h, w\)"
    ):
        codec.decode(torch.rand(1, 16, 1, 2, 2))


def test_prompts():
    assert prompt.parse("a Red ball, moving up") == {"colour": "red", "shape": "ball", "direction": "up"}
    assert prompt.parse("") == {"colour": None, "shape": None, "direction": None}
    with pytest.raises(ValueError, match="does not know the word 'cat'; it knows: red, yellow"):
        prompt.parse("red cat")
    with pytest.raises(ValueError, match="'left' and 'up' are both a direction"):
        prompt.parse("left up")
    embedded = prompt.embed(["red ball", ""])
    assert embedded.shape == (2, 3, 16)
    assert (embedded != 0).sum(dim=-1).tolist() == [[1, 1, 1]] * 2  # one-hot
    assert torch.equal(embedded[0, 2], embedded[1, 2]) and not torch.equal(embedded[0, 0], embedded[1, 0])


def test_the_checker_reads_what_was_rendered():
    g = torch.Generator().manual_seed(5)
    prompts = clips.random_prompts(100, g)
    assert all(clips.check(c.numpy()).matches(p) for p, c in zip(prompts, clips.render(prompts, g), strict=True))


def test_the_checker_sees_what_is_wrong():
    (clip,) = clips.render(["red ball moving right"], torch.Generator().manual_seed(1)).numpy()
    assert clips.check(clip) == clips.Verdict("red", "right", True)
    assert clips.check(clip[::-1]).direction == "left"
    assert clips.check(clip[..., ::-1]).colour == "blue"
    assert clips.check(np.repeat(clip[:1], 8, axis=0)).direction is None
    torn = clip.copy()
    torn[3, :8, :8] = (0.9, 0.1, 0.1)
    torn[3, -8:, -8:] = (0.9, 0.1, 0.1)
    assert not clips.check(torn).connected
    assert not clips.check(np.full_like(clip, 0.4)).matches("red ball moving right")


def test_key_map_covers_every_parameter_both_ways():
    pytest.importorskip("diffusers", reason="diffusers is not installed here")
    state = model.load_state_dict()
    net = model.load_diffusers(state)  # strict
    back = model.published_state_dict(net)
    assert set(back) == set(state) and all(torch.equal(back[key], state[key]) for key in state)


def test_the_weight_file_is_small_and_the_model_deep_enough():
    assert model.WEIGHTS.stat().st_size <= 12_000_000
    assert model.LAYERS >= 10


def test_both_hosts_compute_the_same():
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    pytest.importorskip("diffusers", reason="diffusers is not installed here")
    from pack.nodes.demo import ForesightDemoModel

    comfy_model = ForesightDemoModel.execute().args[0].model.diffusion_model
    x, text = torch.randn(2, 12, 8, 16, 16), prompt.embed(["red ball", ""])
    x = torch.cat([x, model.coordinates(x)], dim=1)
    for level in (1000.0, 500.0, 20.0):
        t = torch.full((2,), level)
        theirs = model.load_diffusers()(x, t, text, return_dict=False)[0]
        torch.testing.assert_close(comfy_model(x, t, text), theirs, rtol=1e-3, atol=1e-3)


def test_both_hosts_sample_the_same():
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    pytest.importorskip("diffusers", reason="diffusers is not installed here")
    import comfy.sample
    import comfy.samplers

    from pack.nodes.demo import ForesightDemoLatent, ForesightDemoModel, ForesightDemoPrompt
    from tools.demo.evaluate import sample

    t = torch.linspace(1, 0, 7)
    sigmas = model.SHIFT * t / (1 + (model.SHIFT - 1) * t)
    latent = ForesightDemoLatent.execute(32, 32, 8, 1).args[0]["samples"]
    noise = torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(3))[None]
    positive, negative = (ForesightDemoPrompt.execute(text).args[0] for text in ("red ball moving up", ""))
    patcher, vae = ForesightDemoModel.execute().args
    sampler = comfy.samplers.ksampler("euler")
    with torch.inference_mode():
        out = comfy.sample.sample_custom(
            patcher, noise, 4.0, sampler, sigmas, positive, negative, latent, disable_pbar=True
        )
    theirs = sample(model.load_diffusers(), ["red ball moving up"], [3], steps=6)
    torch.testing.assert_close(vae.decode(out), theirs, rtol=0, atol=1e-3)


def test_coordinates_run_from_minus_one_to_one():
    grid = model.coordinates(torch.zeros(2, 12, 3, 4, 5))
    assert grid.shape == (2, 3, 3, 4, 5)
    assert grid[0, 0, :, 0, 0].tolist() == [-1, 0, 1]  # t
    assert grid[1, 1, 0, :, 0].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])  # y
    assert grid[0, 2, 0, 0, :].tolist() == [-1, -0.5, 0, 0.5, 1]  # x


@pytest.mark.parametrize(
    "module", ["tools.demo.run", "tools.demo.train", "tools.demo.evaluate", "bench.memory", "bench.gpu"]
)
def test_commands_import_and_describe_themselves(module):
    if module in ("tools.demo.train", "tools.demo.evaluate"):
        pytest.importorskip("diffusers", reason="diffusers is not installed here")
    code = f"import sys, runpy; sys.argv = ['x', '--help']; runpy.run_module({module!r}, run_name='__main__')"
    if module in ("tools.demo.evaluate", "bench.memory"):  # these take no options
        code = f"import {module}"
    root = model.WEIGHTS.parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_demo_says_where_the_time_went():
    # started at 10, up at 21.2, warm at 22, the videos made at 52, all of it written at 55.4
    said = demo.spent([10.0, 21.2, 22.0, 52.0, 55.4], "ComfyUI")
    assert said == (
        "45 s in all: 11 s to start ComfyUI, 1 s to warm up, 30 s for the videos, 3 s to stop, compare and write"
    )


def run_demo(monkeypatch, *arguments: str) -> int:
    """The demo command in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    with pytest.raises(SystemExit) as end:
        demo.main()
    return end.value.code


def test_big_without_comfyui_says_so(monkeypatch, capsys):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert run_demo(monkeypatch, "--big") == 1
    said = capsys.readouterr()
    assert "ComfyUI was not found: set COMFYUI_PATH to the folder with its main.py" in said.err and not said.out


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_big_without_a_gpu_says_so_and_prints_no_figure(cuda, monkeypatch, capsys):
    monkeypatch.setenv("COMFYUI_PATH", "/comfyui")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    assert run_demo(monkeypatch, "--big") == 1
    said = capsys.readouterr()
    assert f"torch {torch.__version__} finds no CUDA or ROCm GPU on this machine" in said.err and not said.out
    assert said.err.endswith("Without --big the demo needs none\n") and "Traceback" not in said.err
    assert ("built without" in said.err) == (cuda is None)


def test_smoke_is_for_big_alone(monkeypatch, capsys):
    assert run_demo(monkeypatch, "--smoke") == 2
    assert "--smoke is for --big alone" in capsys.readouterr().err


def test_big_prints_what_was_measured_and_what_it_computes_from_that(monkeypatch, capsys):
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")
    assert run_demo(monkeypatch, "--big", "--smoke") == 0
    said = capsys.readouterr().out
    names = "plain", "with Foresight, computed", "with Foresight, left out"
    plain, computed, left_out = (float(re.search(rf"^  {name} +([\d.]+) s$", said, re.M)[1]) for name in names)
    assert 0 < left_out < computed and plain > 0
    assert "Runs, computed from measured evaluations with the plan of threshold 0.5" in said
    rows = re.findall(r"^  (\d+) steps +([\d.]+) s plain +([\d.]+) s with Foresight, (\d+) steps computed$", said, re.M)
    # the plan of threshold 0.5
    assert [(row[0], row[3]) for row in rows] == [("20", "10"), ("30", "12"), ("50", "12")]
    for steps, slow, fast, n in rows:
        assert float(slow) == pytest.approx(int(steps) * plain, abs=0.06)  # it is printed to a tenth
        assert float(fast) == pytest.approx(int(n) * computed + (int(steps) - int(n)) * left_out, abs=0.06)
    assert "this says nothing about Wan 1.3B or a card" in said and "on a GPU" not in said


def test_big_that_fails_prints_why_and_no_figure(monkeypatch, capsys):
    pytest.importorskip("comfy", reason="ComfyUI is not installed here")

    def exhaust(bench, row):
        row["plain"] = {"seconds": 1.0}
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(big, "measure", exhaust)
    assert run_demo(monkeypatch, "--big", "--smoke") == 1
    said = capsys.readouterr()
    assert said.err == "--big: out of GPU memory beside 2.6 GiB of weights\n"
    assert "One evaluation" not in said.out and "computed from" not in said.out


def test_big_refuses_a_model_whose_output_is_not_finite():
    class Broken:
        def sample(self, steps):
            return types.SimpleNamespace(finite=False)

    with pytest.raises(RuntimeError, match="not finite: its times would say nothing"):
        big.measure(Broken(), {})


def test_a_missing_weight_file_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(model, "WEIGHTS", tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match="reinstall the pack, or make it with `python -m tools.demo.train`"):
        model.load_state_dict()


def test_the_model_draws_what_the_prompt_says():
    """Four clips at 20 steps."""
    pytest.importorskip("diffusers", reason="diffusers is not installed here")
    from tools.demo.evaluate import sample

    wanted = ["red ball moving right", "blue box moving up", "yellow ring moving left", "green ball moving down"]
    made = sample(model.load_diffusers(), wanted, seeds=[11, 12, 13, 14], steps=20)
    assert sum(clips.check(clip.numpy()).matches(p) for p, clip in zip(wanted, made, strict=True)) >= 3


def test_the_recorded_score_reaches_85_percent():
    facts = json.loads(evaluate.RECORD.read_text())
    assert facts["pairs"] == 48 and facts["sampling_steps"] == 50 and facts["cfg"] == 4 and facts["checker"] >= 0.85
