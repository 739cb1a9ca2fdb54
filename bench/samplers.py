"""Every sampler of ComfyUI with both methods, on the bundled model: `python -m bench.samplers`, a quarter of an hour.

It writes docs/samplers.md. PSNR is of the decoded clip against the plain run of the same sampler, prompt and seed;
speed-up counts evaluations of the model (for the paper's method block calls), which no machine changes.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foresight import Config, ForecastConfig, PaperConfig
from models.demo.prompt import embed

from .comfy import Demo, noise_of
from .fronts import SAME

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "bench" / "results" / "samplers.json", ROOT / "docs" / "samplers.md"
PROMPT, SEED, CFG = "green ring moving right", 403, 4.0
CFG_PP = 1.0  # what the samplers of CFG++ are made for
SETTINGS = {
    "forecast 0.5": ForecastConfig(threshold=0.5),
    "forecast 1": ForecastConfig(threshold=1.0),
    "paper 0.5": PaperConfig(threshold=0.5),
}
STEPS = (20, 30)


@dataclass
class Sampled:
    """The decoded clip of a run, and its record; None for a plain one."""

    clip: object
    record: dict | None


def sample(
    demo: Demo,
    settings: Config | None,
    sampler: str,
    steps: int,
    scheduler: str = "simple",
    cfg: float = CFG,
    rows: int | None = None,
) -> Sampled:
    """One run as the node KSampler does it; of the first `rows` of the latent and 3 times as many columns, or of all.

    Raises:
        Exception: the sampler is not for this model.
    """
    import comfy.samplers
    import torch

    patcher = demo.model if settings is None else demo.apply(demo.model, settings)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(*([[embed([text]), {}]] for text in (PROMPT, "")))
    guider.set_cfg(CFG_PP if sampler.endswith("_cfg_pp") else cfg)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, steps)
    noise = noise_of(SEED)[..., :rows, : rows and 3 * rows]
    with torch.inference_mode():
        latent = guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=SEED
        )
    return Sampled(demo.decode(latent), None if settings is None else demo.newest_run())


def compare(plain: Sampled, ours: Sampled) -> dict:
    """What a run did, against the plain one."""
    error, run = (plain.clip - ours.clip).square().mean(), ours.record
    return {
        "psnr": min(SAME, float(-10 * (error + 1e-10).log10())),
        "speedup": run["block_speedup"],
        **{key: run[key] for key in ("inactive", "uncorrected", "restarts", "planned", "steps")},
    }


def sweep(demo: Demo, samplers: Sequence[str]) -> dict:
    """What each of `SETTINGS` did, by sampler and number of steps, or why even the plain run failed."""
    found = {}
    for sampler in samplers:
        for steps in STEPS:
            row = found[f"{sampler} {steps}"] = {}
            try:
                plain = sample(demo, None, sampler, steps)
            except Exception as error:  # a sampler for autoregressive models, say
                row["failed"] = f"{type(error).__name__}: {error}"
                continue
            for name, settings in SETTINGS.items():
                row[name] = compare(plain, sample(demo, settings, sampler, steps))
            print(sampler, steps, {name: (round(x["speedup"], 2), round(x["psnr"], 1)) for name, x in row.items()})
    return found


def page(found: dict) -> str:
    """The page as markdown."""
    columns = [(steps, name) for steps in STEPS for name in SETTINGS]
    head = ["sampler", *(f"{steps} steps, {name}" for steps, name in columns), "correction"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    failed = []
    for sampler in dict.fromkeys(key.rpartition(" ")[0] for key in found):
        rows = {steps: found[f"{sampler} {steps}"] for steps in STEPS}
        if any("failed" in row for row in rows.values()):
            failed.append(sampler)
            continue
        cells = [_cell(rows[steps][name]) for steps, name in columns]
        lines.append(f"| {sampler} | {' | '.join(cells)} | {_correction(sampler, rows)} |")
    text = TEXT.format(prompt=PROMPT, seed=SEED, cfg=CFG, cfg_pp=CFG_PP) + "\n".join(lines) + "\n"
    return text + (f"\nNot for this model, with or without Foresight: {', '.join(failed)}.\n" if failed else "")


def _cell(run: dict) -> str:
    if run["speedup"] == 1:
        return "plain"
    same = run["psnr"] == SAME
    return f"{run['speedup']:.2f}x " + ("as plain" if same else f"{run['psnr']:.1f}")


def _correction(sampler: str, rows: dict[int, dict]) -> str:
    """How forecasts were corrected, over all runs of a sampler with the method forecast."""
    runs = [run for row in rows.values() for name, run in row.items() if name.startswith("forecast")]
    if all(run["speedup"] <= 1 for run in runs):
        return "nothing is left out"
    if why := next((run["uncorrected"] for run in runs if run["uncorrected"]), None):
        return why
    if sampler in ("euler", "ddim"):  # the same function
        return "paid back"
    return "started again" if any(run["restarts"] for run in runs) else "not started again"


TEXT = """# Samplers

Every sampler of ComfyUI's KSampler on the bundled model: speed-up, and PSNR in dB against the plain run of the same
sampler. "plain" is a run in which nothing was left out. Speed-up counts evaluations (paper: block calls). One prompt
("{prompt}", seed {seed}), scheduler simple, CFG {cfg:g} ({cfg_pp:g} for the samplers of CFG++, which are made for it).
Differences under 2 dB are chance. Made by `python -m bench.samplers`; a test in the suite holds every sampler to at
least 33 dB at threshold 0.5 (CFG 1, a quarter of the picture).

Where a sampler renews the noise in each step, outputs can't be foreseen by their slope: the last one is given again,
which is worth less, and the plan leaves out little (`euler_ancestral`) or nothing. Below 1x, what was left out at first
was taken back, which cost an evaluation. "started again" and "paid back" are the two corrections that
[How it works](how-it-works.md) explains.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="only write the page of the results that are there")
    if not parser.parse_args().page:
        demo = Demo()
        import comfy.samplers

        found = sweep(demo, comfy.samplers.KSampler.SAMPLERS)
        RESULT.write_text(json.dumps({"machine": demo.machine(), "runs": found}, indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULT.read_text())["runs"]))


if __name__ == "__main__":
    main()
