"""Toys: blocks whose outputs are written down, and a random drifting network, driven as a host would."""

import torch

from foresight.engine import PaperConfig, Run, RunStats


def play(config: PaperConfig, outputs: list[list[float]], **run) -> tuple[list[list[float]], RunStats]:
    """Run blocks that output `outputs[evaluation][block]`, whatever comes in; what left each block, and the record."""
    run = Run(config, **run)
    seen = []
    for values in outputs:
        run.begin_evaluation()
        blocks = [lambda x, value=value: (torch.full((1, 4, 2), float(value)),) for value in values]
        seen.append([x[0][0, 0, 0].item() for x in one_call(run, (torch.zeros(1, 4, 2),), blocks)])
    return seen, run.close()


def one_call(run: Run, x, blocks, keys=("cond",)) -> list:
    """One call of a model with these blocks, as a host makes it: what left each of them."""
    call, left = run.begin_call(list(keys), len(blocks)), []
    for index, block in enumerate(blocks):
        x = block(x) if call is None else call.block(index, x, lambda x=x, block=block: block(x))
        left.append(x)
    assert call is None or run.end_call(call)
    return left


class Drifting:
    """A residual network of `depth` blocks whose input changes a little in each evaluation."""

    def __init__(self, depth: int = 5, dim: int = 6, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        self.weights = [torch.randn(dim, dim, generator=g) * 0.3 for _ in range(depth)]
        self.start, self.drift = torch.randn(7, dim, generator=g), torch.randn(7, dim, generator=g)
        self.ran: list[int] = []

    def input(self, evaluation: int, batch: int, offset: float = 0.0) -> torch.Tensor:
        """(batch, 7, dim); changes shrink, grow and shrink again, so that decisions differ between evaluations."""
        t = torch.tensor(evaluation * 0.35 + offset)
        x = self.start + torch.sin(t) * self.drift + 0.3 * torch.cos(2.3 * t)
        return torch.stack([x * (1 + 0.1 * b) for b in range(batch)])

    def block(self, index: int, x: torch.Tensor) -> torch.Tensor:
        self.ran.append(index)
        return x + torch.tanh(x @ self.weights[index])


def reference(net: Drifting, config: PaperConfig, warmup: int, evaluations: list[list[dict[str, torch.Tensor]]]):
    """The method with every output of every stream kept, straight from the paper.

    `evaluations[e]` are the calls of an evaluation, each the input of its streams by name. Returns, per evaluation,
    each stream's output, and per evaluation and call the first block that ran.
    """
    depth = len(net.weights)
    cached, base, changes, slot, seen, last = {}, {}, {}, {}, {}, {}
    outputs, starts = [], []
    for e, calls in enumerate(evaluations):
        outputs.append({})
        starts.append([])
        for call in calls:
            names = list(call)
            x0 = torch.cat([call[name] for name in names])
            in_step = all(last.get(name) == e - 1 and slot.get(name, -1) >= 0 for name in names)
            reuse = e >= warmup and (e - warmup) % config.interval and in_step
            reuse = reuse and len({slot[name] for name in names}) == 1
            x, start = x0, 0
            if reuse:
                start = slot[names[0]] + 1
                stored = torch.cat([cached[name, start - 1] for name in names])
                x = stored if config.cache_kind == "output" else x0 + stored - torch.cat([base[name] for name in names])
            for name in names:
                last[name], seen[name] = e, seen.get(name, 0) + 1
                if not reuse:
                    slot[name] = -1
            warm = e >= warmup and all(seen[name] > warmup for name in names)
            starts[-1].append(start)
            for block in range(start, depth):
                x = net.block(block, x)
                rows = dict(zip(names, x.chunk(len(names)), strict=True))
                deltas = [((rows[n] - cached[n, block]) ** 2).mean() for n in names if (n, block) in cached]
                cached.update({(name, block): value for name, value in rows.items()})
                if len(deltas) < len(names):
                    continue
                for name, delta in zip(names, deltas, strict=True):
                    if seen[name] <= warmup:
                        changes.setdefault((name, block), []).append(delta)
                if warm:
                    weighted = [zip((1, 0.1, 0.01), changes[name, block][::-1], strict=False) for name in names]
                    lam = sum(w * c for terms in weighted for w, c in terms) / len(names)
                    if sum(deltas) / len(deltas) <= config.threshold * lam:
                        for name in names:
                            slot[name], base[name] = block, call[name]
            outputs[-1].update(zip(names, x.chunk(len(names)), strict=True))
    return outputs, starts
