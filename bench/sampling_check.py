"""Whether the change measured on sampled rows decides as that on all rows would, on one and the same trajectory."""

import torch

from foresight import PaperConfig
from foresight.engine.prefix import formulas, metric
from models.demo import model

from .meter import blocks_of
from .workloads import Workload

GAMMAS = (0.25, 0.5, 1.0, 2.0)
STEPS = 50


class _Changes:
    """Hooks on the blocks of a plain run: each block's change since its last output, on sampled and on all rows.

    Attributes:
        changes: (rows taken, cond or uncond, block) to the changes, one per evaluation from the second on.
    """

    def __init__(self, net: torch.nn.Module, rows: tuple[int, ...]):
        self._rows, self._last = rows, {}
        self.changes: dict[tuple, list[torch.Tensor]] = {}
        self._calls = [0] * len(blocks_of(net))
        for index, block in enumerate(blocks_of(net)):
            block.register_forward_hook(lambda module, args, out, index=index: self._observe(index, out))

    def _observe(self, index: int, out) -> None:
        stream = self._calls[index] % 2  # cond and uncond take turns
        self._calls[index] += 1
        outputs = out if isinstance(out, tuple) else (out,)
        for rows in self._rows:
            now = self._sample(outputs, rows)
            before = self._last.get((rows, stream, index))
            self._last[rows, stream, index] = now
            if before is not None:
                self.changes.setdefault((rows, stream, index), []).append(_change(now, before))

    @staticmethod
    def _sample(outputs: tuple[torch.Tensor, ...], wanted: int) -> tuple[torch.Tensor, ...]:
        rows = [metric.rows_of(x, 1, 0) for x in outputs]
        stride = metric.sample_stride(sum(x.shape[1] for x in rows), wanted)
        return tuple(metric.sample_of(x, torch.arange(0, x.shape[1], stride)) for x in rows)

    def together(self, rows: int, blocks: int) -> torch.Tensor:
        """(changes, blocks): means over cond and uncond, which decide together."""
        per_block = [sum(torch.stack(self.changes[rows, stream, b]) for stream in (0, 1)) / 2 for b in range(blocks)]
        return torch.stack(per_block, dim=1)


def _change(now: tuple[torch.Tensor, ...], before: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """MSE over all elements together."""
    return metric.distance(now, before, by_stream=False).square() / sum(x.numel() for x in now)


def decisions(changes: torch.Tensor, warmup: int, gamma: float) -> torch.Tensor:
    """Whether each block qualifies in each evaluation after warmup: (evaluations, blocks), bool.

    Args:
        changes: (evaluations - 1, blocks); row 0 is the change of evaluation 1.
    """
    limit = gamma * formulas.block_lambda(list(changes[: warmup - 1]))
    return formulas.qualifies(changes[warmup - 1 :], limit)


def measure(host, prompt: str, seed: int) -> dict:
    """Share of block decisions of a plain 50-step euler run that differ between the default rows and all rows."""
    config = PaperConfig()
    found = []
    rows = (config.sample_rows, 0)
    plain = Workload("plain", "euler", (STEPS,), model.SHIFT)
    host.sample(lambda denoiser: found.append(_Changes(denoiser.net, rows)), prompt, seed, plain)
    blocks, warmup = len(blocks_of(host.net)), config.warmup_of(STEPS)
    sampled, exact = (found[0].together(n, blocks) for n in rows)
    shares = {}
    for gamma in GAMMAS:
        a, b = (decisions(x, warmup, gamma) for x in (sampled, exact))
        shares[str(gamma)] = float((a != b).float().mean())
    return {"model": host.name, "sample_rows": config.sample_rows, "steps": STEPS, "differ_by_gamma": shares}
