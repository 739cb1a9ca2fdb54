"""What the relatives of the bundled model draw, beside what it draws itself: `python -m bench.relatives`.

Prompts and seeds are the first of the held-out pairs. Writes `relatives.json` and pictures to `bench/results/`.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from foresight.report.quality import mean_psnr
from tools.demo import evaluate, fit
from tools.demo.clips import check

from . import finetune
from .models import DISTILLED, EXPERTS, MODELS

RESULT = Path(__file__).with_name("results") / "relatives.json"
BUNDLED = "wan"
RUNS = {  # name: (networks, steps, CFG, flow shift)
    "bundled, 50 steps": ((BUNDLED,), 50, 4.0, 3.0),
    "bundled, 20 steps": ((BUNDLED,), 20, 4.0, finetune.SHIFT),
    "experts, 20 steps": (EXPERTS, 20, 4.0, finetune.SHIFT),
    "bundled, 8 steps, CFG 1": ((BUNDLED,), 8, 1.0, finetune.SHIFT),
    "bundled, 4 steps, CFG 1": ((BUNDLED,), 4, 1.0, finetune.SHIFT),
    "distilled, 8 steps, CFG 1": ((DISTILLED,), 8, 1.0, finetune.SHIFT),
    "distilled, 4 steps, CFG 1": ((DISTILLED,), 4, 1.0, finetune.SHIFT),
}
REFERENCE = "bundled, 50 steps"  # the PSNR is to this


def network(names: tuple[str, ...]) -> torch.nn.Module:
    """A model, or the pair of experts."""
    found = [MODELS[name].load() for name in names]
    return found[0] if len(found) == 1 else finetune.Pair(*found)


def handover(pairs: list[tuple[str, int]]) -> float:
    """How far the experts' velocities are apart where a run passes the boundary: norm, in shares of the high one's."""
    pair, found = network(EXPERTS), []
    for prompt, seed in pairs:
        at = torch.tensor([finetune.BOUNDARY])
        x = evaluate.trajectory(pair, [prompt], [seed], at, 20, 4.0, finetune.SHIFT)[:, 0]
        with torch.no_grad():
            high, low = (fit.wan_velocity(net, x, at * 1000, evaluate.embed([prompt])) for net in (pair.high, pair.low))
        found.append(((low - high).norm() / high.norm()).item())
    return statistics.mean(found)


def draw(pairs: list[tuple[str, int]]) -> dict[str, dict]:
    """Score each of `RUNS`, and paint what the relatives draw."""
    prompts, clips, rows = [prompt for prompt, _ in pairs], {}, {}
    for name, (names, steps, cfg, shift) in RUNS.items():
        net = network(names)
        made = [evaluate.sample(net, [prompt], [seed], steps, cfg, shift)[0] for prompt, seed in pairs]
        right = [check(clip.numpy()).matches(prompt) for clip, prompt in zip(made, prompts, strict=True)]
        clips[name] = made
        rows[name] = {"right": sum(right)}
        if name != REFERENCE:
            rows[name]["psnr"] = statistics.mean(map(mean_psnr, clips[REFERENCE], made))
        print(f"{name:<28}{rows[name]}", flush=True)
        if names != (BUNDLED,):
            path = RESULT.with_name(f"relatives-{names[0]}-{steps}.jpg")
            evaluate.contact_sheet([clip.numpy() for clip in made], prompts, right, path)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16)
    pairs = evaluate.held_out_pairs()[: parser.parse_args().pairs]
    facts = {"pairs": len(pairs), "handover": handover(pairs[:4]), "runs": draw(pairs)}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
