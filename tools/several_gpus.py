"""One video on several GPUs, with diffusers' context parallelism and Foresight; without GPUs, in processes of the CPU.

In the pack's folder:  torchrun --nproc-per-node 2 -m tools.several_gpus

Each process has the whole model and a share of the tokens. Nothing is said to Foresight about it: it finds out, and all
processes leave out the same evaluations. The bundled model has 4 heads, so 2 or 4 processes can share it.
"""

import argparse
import logging
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from foresight import ForecastConfig
from foresight.hosts.diffusers import apply_foresight
from foresight.report.machine import card
from foresight.report.quality import psnr
from models.demo.pipeline import DemoPipeline

PROMPT = "red ball moving right"


def start() -> torch.device:
    """Connect the processes; the device of this one.

    Raises:
        SystemExit: it was not started by torchrun.
    """
    if "RANK" not in os.environ:
        raise SystemExit("start it with torchrun: torchrun --nproc-per-node 2 -m tools.several_gpus")
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.device_count() >= here:
        torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl")
        return torch.device("cuda", local)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, also where there is none
    dist.init_process_group("gloo")
    return torch.device("cpu")


def split(transformer: torch.nn.Module, device: torch.device) -> None:
    """Give each process a share of the tokens (Ulysses)."""
    from diffusers import ContextParallelConfig

    count = dist.get_world_size()
    mesh = init_device_mesh(device.type, (1, count), mesh_dim_names=("ring", "ulysses"))
    transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count, mesh=mesh))


def timed(pipe: DemoPipeline, steps: int) -> tuple[torch.Tensor, float]:
    """A video (8, 32, 32, 3) on the CPU, and its seconds; all processes begin together."""
    dist.barrier()
    began = time.perf_counter()
    video = pipe(PROMPT, seed=1, steps=steps).cpu()
    return video, time.perf_counter() - began


def same_everywhere(video: torch.Tensor) -> bool:
    """Whether all processes have these bits."""
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, video)
    return all(torch.equal(video, other) for other in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threshold", type=float, default=0.5)
    args = parser.parse_args()
    device = start()
    speaks = dist.get_rank() == 0
    logging.basicConfig(level=logging.INFO if speaks else logging.ERROR, format="%(message)s", stream=sys.stdout)
    pipe = DemoPipeline(device)
    split(pipe.transformer, device)
    pipe(PROMPT, steps=2)  # the first calls take longer
    plain, plain_seconds = timed(pipe, args.steps)
    handle = apply_foresight(pipe.transformer, ForecastConfig(threshold=args.threshold))
    video, seconds = timed(pipe, args.steps)
    same = same_everywhere(video)
    if speaks:
        name = card(device)
        quality = psnr(plain, video).mean()
        print(f"\n{dist.get_world_size()} processes on {name}, {args.steps} steps")
        print(f"plain           {plain_seconds:6.2f} s")
        print(f"with Foresight  {seconds:6.2f} s, {plain_seconds / seconds:.2f}x, PSNR against plain {quality:.1f} dB")
        print(f"computed        {handle.stats.computed_in_full} of {len(handle.stats.evaluations)} evaluations")
        print(f"the same video in all processes: {'yes' if same else 'NO'}", flush=True)
    dist.barrier()  # none goes while another one still needs it
    dist.destroy_process_group()
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # an ending Python was once aborted here, by a thread that was none of ours, when all was done
