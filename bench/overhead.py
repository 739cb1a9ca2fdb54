"""What Foresight itself costs, on the demo model in ComfyUI: `python -m bench.overhead`.

Paired runs, plain and accelerated in turn, so that a machine that slows down slows both; medians of the pairs' ratios.

- nothing reused: the node is active and measures, but no block ever qualifies. Limit 1.05x plain.
- reuse: the measured speed-up over the speed-up by block count. Limit 0.9.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from foresight.engine import METHODS

from .comfy import Demo

RESULT = Path(__file__).with_name("overhead.json")
LIMIT_IDLE, LIMIT_REUSE = 1.05, 0.9
FAST = {"forecast": {"threshold": 1.0}, "paper": {"threshold": 2.0, "reuse_interval": 3}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--methods", nargs="+", choices=list(FAST), default=list(FAST))
    args = parser.parse_args()
    demo = Demo()

    def paired(settings) -> dict:
        pairs, stats = [], None
        for _ in range(args.pairs):
            plain = demo.run("red ball moving right", 1, None, args.steps)
            mine = demo.run("red ball moving right", 1, settings, args.steps)
            pairs.append((round(plain.seconds, 4), round(mine.seconds, 4)))
            stats = mine.stats
        ratio = statistics.median(mine / plain for plain, mine in pairs)
        figures = {"time_ratio": ratio, "speedup": 1 / ratio, "block_speedup": stats["block_speedup"]}
        return {**figures, "estimated_speedup": stats["estimated_speedup"], "pairs_seconds": pairs}

    demo.run("red ball moving right", 1, None, 5)
    methods, kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}, True
    for method in args.methods:
        methods[method] = rows = {
            "machine": demo.machine(),
            "steps": args.steps,
            "nothing_reused": paired(METHODS[method](threshold=1e-12)),
            "default": paired(METHODS[method]()),
            "fast": paired(METHODS[method](**FAST[method])),
        }
        idle = rows["nothing_reused"]["time_ratio"]
        print(f"{method}, nothing reused: {idle:.3f}x plain (limit {LIMIT_IDLE})")
        kept &= idle <= LIMIT_IDLE
        for name in ("default", "fast"):
            share = rows[name]["speedup"] / rows[name]["block_speedup"]
            print(
                f"{method}, {name}: {rows[name]['speedup']:.3f}x measured, {rows[name]['block_speedup']:.3f}x by block "
                f"count: {share:.3f} of it (limit {LIMIT_REUSE})"
            )
            kept &= share >= LIMIT_REUSE
    RESULT.write_text(json.dumps(methods, indent=1) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
