"""Several processes that make a video together, on one machine with gloo: `python -m support.rank_cases FOLDER`.

Everything is imported once and forked from there, because importing takes longer than all cases together. Each process
writes what its cases gave to FOLDER; `tests/foresight/hosts/test_ranks.py` looks at it.
"""

import contextlib
import datetime
import logging
import os
import sys
import time
import traceback
from pathlib import Path

import diffusers
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from foresight import ForecastConfig, PaperConfig
from foresight.engine import evidence, pooled
from foresight.hosts import ranks
from foresight.hosts.diffusers import apply_foresight
from support.diffusers_models import arguments, loop, seeded
from support.diffusers_transformers import chronoedit, wan

STEPS = 30
LIMIT = 3.0  # seconds that processes wait for one another where one fails
ONE = ForecastConfig(threshold=1.0)
MAKES = {"wan": wan, "chronoedit": chronoedit}


def split(model):
    """Context parallelism over all processes. On a machine without a GPU diffusers divides by the number of those."""
    torch.accelerator.device_count = lambda: 1
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (1, size), mesh_dim_names=("ring", "ulysses"))
    model.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=size, mesh=mesh))
    return model


class Pipe:
    """As much of a pipeline as is looked at, with levels even in time; `play` takes the scheduler's steps."""

    def __init__(self, model):
        self.components, self.scheduler = {"transformer": model}, diffusers.FlowMatchEulerDiscreteScheduler()
        self.scheduler.set_timesteps(sigmas=torch.linspace(1, 0, STEPS + 1)[:-1].tolist())


def run(config=ONE, make="wan", spread=True, early=True, seed=0, before=None, play=loop, target=None, **options):
    """A video with a model of its own: what came, what was decided, the record's last words.

    Args:
        target: What Foresight is applied to, made of the model; the model itself by default.
    """
    model, handle = MAKES[make]().model, None
    pipe = model if target is None else target(model)
    if config is not None and early:
        handle = apply_foresight(pipe, config, **options)
    if spread:
        split(model)
    if config is not None and not early:
        handle = apply_foresight(pipe, config, **options)
    if before is not None:
        before(model, handle)
    x = play(model, "wan", steps=STEPS, seed=seed)
    if handle is None:
        return {"x": x}
    stats = handle.stats
    found = {"x": x, "kinds": "".join(e.kind[0] for e in stats.evaluations), "inactive": stats.inactive}
    return {**found, "levels": [e.level for e in stats.evaluations], "summary": stats.summary()}


# ---- cases of processes that work


def same_as_one(rank):
    """Wan in both orders of applying, and another class; a threshold at which all is computed."""
    found = {}
    for threshold in (0.5, 0.7):
        config = ForecastConfig(threshold=threshold)
        found["alone", threshold] = run(config, spread=False, group=None)
        for early in (True, False):
            found["together", threshold, early] = run(config, early=early)
    found["plain"], found["nothing"] = run(None), run(ForecastConfig(threshold=1e-12))
    found["other", "alone"] = run(ONE, "chronoedit", spread=False)
    found["other", "together"] = run(ONE, "chronoedit")
    found["paper"] = run(PaperConfig(threshold=2.0, warmup_steps=3))
    return found


def measures_more(rank):
    found = evidence.Evidence._found

    def more(self, *args):
        move, errors = found(self, *args)
        return move, [8 * error for error in errors]

    evidence.Evidence._found = more if rank == 1 else found
    try:
        return {"alone": run(spread=False), "together": run()}
    finally:
        evidence.Evidence._found = found


def gives_up(rank):
    def before(model, handle):
        calls = [0]

        def at(*_):
            calls[0] += 1
            if calls[0] == 2 * 12 + 2:  # the second of the two conds
                handle._hooked[0][1]._run.deactivate("no memory here")

        if rank == 1:
            model.register_forward_pre_hook(at)

    return run(before=before)


def exchanges(rank):
    counted, largest = [], ranks.Largest.__call__

    def count(self, numbers):
        counted.append(len(numbers))
        return largest(self, numbers)

    ranks.Largest.__call__ = count
    try:
        found = run()
    finally:
        ranks.Largest.__call__ = largest
    return {**found, "exchanges": counted}


def guided_over_ranks(rank):
    """Each process has one cond, in a loop of one's own; two have the same where there are four.

    A sketch has fewer numbers than the latent, or it would be the latent.
    """
    size, kept = dist.get_world_size(), pooled.NUMBERS
    of_rank = rank * 2 // size

    def play(model, name, steps, seed):
        x, text = seeded(1, 4, 3, 8, 8, seed=10), seeded(1, 6, 16, seed=1 + of_rank)
        grid = torch.linspace(1, 0, steps + 1)
        with torch.no_grad():
            for t, s in zip(grid[:-1], grid[1:], strict=True):
                with model.cache_context(("cond", "uncond")[of_rank]):
                    v = model(**arguments("wan", x, t * 1000, text))[0]
                parts = [torch.empty_like(v) for _ in range(size)]
                dist.all_gather(parts, v.contiguous())
                x = x + (s - t) * (parts[-1] + 3 * (parts[0] - parts[-1]))
        model._reset_stateful_cache()
        return x

    pooled.NUMBERS = 256 * size
    try:
        configs = {threshold: ForecastConfig(threshold=threshold) for threshold in (0.5, 0.7)}
        apart = {"spread": False, "play": play, "group": dist.group.WORLD}
        return {threshold: run(config, **apart) for threshold, config in configs.items()}
    finally:
        pooled.NUMBERS = kept


def other_videos(rank):
    """The weights are sharded, and each process makes a video of its own."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def before(model, handle):
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def sharded_first(config):
        model = wan().model
        before(model, None)
        handle = apply_foresight(model, config)
        handle.remove()
        return type(model).__name__

    found = run(spread=False, seed=rank, before=before)
    return {**found, "alone": run(spread=False, seed=rank), "class": sharded_first(ONE)}


def token_levels(rank):
    """A level for each token, two frames: all tokens of rank 0 are of the first, which is kept and has level 0."""

    pipes = []

    def target(model):
        pipes.append(Pipe(model))
        return pipes[-1]

    def play(model, name, steps, seed):
        x, text = seeded(1, 4, 2, 8, 8, seed=10), seeded(1, 6, 16, seed=1)
        grid = torch.linspace(1, 0, steps + 1)
        with torch.no_grad():
            for k, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
                for pipe in pipes:
                    pipe.scheduler._step_index = k
                timestep = torch.cat([torch.zeros(1, 16), torch.full((1, 16), float(t) * 1000)], 1)
                with model.cache_context("cond"):
                    v = model(**{**arguments("wan", x, t, text), "timestep": timestep})[0]
                x = torch.cat([x[:, :, :1], x[:, :, 1:] + (s - t) * v[:, :, 1:]], 2)
        model._reset_stateful_cache()
        return x

    found = {"alone": run(spread=False, play=play), "together": run(play=play)}
    return {**found, "whole": run(play=play, target=target)}


def found_ranks(rank):
    """What `ranks_of` finds."""
    from torch.distributed.fsdp import fully_shard

    def told(model, group=None):
        found = ranks.ranks_of(model, group)
        return found.words, found.worst and found.worst.size, found.never, found.first

    model = wan().model
    found = {"videos apart": told(model), "given": told(model, dist.group.WORLD), "tokens": told(split(wan().model))}
    found["weights"] = told(fully_shard(wan().model, mesh=init_device_mesh("cpu", (2,))))
    model._cp_shard_fn = print
    found["unknown"] = told(model)
    alone = [dist.new_group([r]) for r in range(2)]
    found["alone"] = told(wan().model, alone[rank])
    try:
        told(wan().model, alone[1 - rank])
    except ValueError as error:
        found["not in it"] = str(error)
    return found


def four(rank):
    return {"alone": run(spread=False), "together": run(), "guided": guided_over_ranks(rank)}


# ---- cases of processes that fail


def one_raises(rank):
    def before(model, handle):
        calls = [0]

        def at(*_):
            calls[0] += 1
            if rank == 1 and calls[0] == 8:
                raise OSError("this one is broken")

        model.blocks[1].register_forward_pre_hook(at)

    return run(before=before)


def one_sleeps(rank):
    def before(model, handle):
        calls = [0]

        def at(*_):
            calls[0] += 1
            if rank == 1 and calls[0] == 2 * 6 + 1:  # between two evaluations
                time.sleep(2 * LIMIT)

        model.register_forward_pre_hook(at)

    return run(before=before)


def one_without(rank):
    return run(ONE if rank == 0 else None)


def other_settings(rank):
    return run(ForecastConfig(threshold=1.0 if rank == 0 else 0.5))


WORKING = same_as_one, measures_more, gives_up, exchanges, guided_over_ranks, other_videos, token_levels, found_ranks
FAILING = one_raises, one_sleeps, one_without, other_settings


# ---- processes


def work(folder, group, rank, size, cases, apart):
    """All cases of one process; `apart` gives each a connection of its own, since it may break it."""
    found = {}
    logging.getLogger("foresight.hosts.diffusers").setLevel(logging.INFO)
    for case in cases:
        if apart or not dist.is_initialized():
            name = f"{group}-{case.__name__ if apart else 'all'}"
            store = dist.FileStore(str(folder / f"{name}.store"), size)
            limit = datetime.timedelta(seconds=LIMIT if apart else 60)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        began = time.perf_counter()
        try:
            found[case.__name__] = case(rank)
        except Exception as error:
            causes = [str(e) for e in (error, error.__cause__) if e is not None]
            found[case.__name__] = {"error": f"{type(error).__name__}: {causes[0]}", "causes": causes}
            if not apart:
                traceback.print_exc()
        found[case.__name__]["seconds"] = time.perf_counter() - began
        if apart:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
            (folder / f"{group}-{case.__name__}-{rank}").touch()
            while not all((folder / f"{group}-{case.__name__}-{r}").exists() for r in range(size)):
                time.sleep(0.01)
    torch.save(found, folder / f"{group}-{rank}.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    children = []
    for group, size, cases, apart in (
        ("fail", 2, FAILING, True),
        ("two", 2, WORKING, False),
        ("four", 4, (four,), False),
    ):
        for rank in range(size):
            child = os.fork()
            if not child:
                try:
                    work(folder, group, rank, size, cases, apart)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(0)
            children.append(child)
        if group == "two":  # beside those that wait for one another
            for _ in range(size):
                os.waitpid(children.pop(), 0)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
