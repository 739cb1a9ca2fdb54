"""What Foresight holds with published model sizes at their usual resolution, computed: `python -m bench.memory`.

A stream (a cond) holds one hidden state and the sampled rows of every block, see `foresight/engine/prefix`. Block
counts and widths are those of the published checkpoints, latents those of ComfyUI's default workflows.
"""

import math

import torch

from foresight import PaperConfig
from foresight.engine.prefix.stream import stream_bytes

# name, video, latent (frames, height, width), patch, text tokens in the hidden state, width, blocks, conds, bytes
MODELS = [
    ("Wan 2.1 1.3B", "832x480, 81 frames", (21, 60, 104), (1, 2, 2), 0, 1536, 30, 2, 2),
    ("Wan 2.1 / 2.2 14B", "832x480, 81 frames", (21, 60, 104), (1, 2, 2), 0, 5120, 40, 2, 2),
    ("Wan 2.1 / 2.2 14B", "1280x720, 81 frames", (21, 90, 160), (1, 2, 2), 0, 5120, 40, 2, 2),
    ("Wan 2.2 5B", "1280x704, 121 frames", (31, 44, 80), (1, 2, 2), 0, 3072, 30, 2, 2),
    ("HunyuanVideo 1.0", "1280x720, 129 frames", (33, 90, 160), (1, 2, 2), 256, 3072, 60, 1, 2),
    ("HunyuanVideo 1.5", "1280x720, 121 frames", (31, 45, 80), (1, 1, 1), 256, 2048, 54, 2, 2),
    ("LTX-Video 2B", "768x512, 121 frames", (16, 16, 24), (1, 1, 1), 0, 2048, 28, 2, 2),
    ("LTX-Video 13B", "768x512, 121 frames", (16, 16, 24), (1, 1, 1), 0, 4096, 48, 2, 2),
    ("LTX-2 (video part)", "1280x704, 121 frames", (16, 22, 40), (1, 1, 1), 0, 4096, 48, 2, 2),
    ("Mochi", "848x480, 163 frames", (28, 60, 106), (1, 2, 2), 256, 3072, 48, 2, 2),
    ("Cosmos 1 7B", "1280x704, 121 frames", (16, 88, 160), (1, 2, 2), 0, 4096, 28, 2, 2),
    ("CogVideoX 5B", "720x480, 49 frames", (13, 60, 90), (1, 2, 2), 226, 3072, 42, 2, 2),
    ("Kandinsky 5 Lite", "768x512, 121 frames", (31, 64, 96), (1, 2, 2), 0, 1792, 32, 2, 2),
]


def main() -> None:
    rows = PaperConfig().sample_rows
    print("| model | video | a hidden state | held, all conds | every block's output instead |\n|---|---|---|---|---|")
    for name, video, latent, patch, text, width, blocks, conds, itemsize in MODELS:
        tokens = text + math.prod(math.ceil(n / p) for n, p in zip(latent, patch, strict=True))
        dtype = {2: torch.bfloat16, 4: torch.float32}[itemsize]
        slot, samples = stream_bytes(((torch.Size((1, tokens, width)), dtype),), blocks, rows)
        gib = [n / 2**30 for n in (slot, conds * (slot + samples), conds * blocks * slot)]
        print(f"| {name} | {video} | {gib[0]:.2f} GiB | **{gib[1]:.2f} GiB** | {gib[2]:.1f} GiB |")


if __name__ == "__main__":
    main()
