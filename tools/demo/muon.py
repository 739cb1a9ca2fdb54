"""The optimizer of the matrices of a network's blocks."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix of the update (Jordan et al. 2024) by five Newton-Schulz iterations.

    `torch.optim.Muon` does the same in bf16, one matrix at a time: 3.3 s a step on two AVX2 cores for this model,
    against 0.15 s here in fp32 with equal shapes stacked; the model's own forward and backward take 2.6 s.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                grads = torch.stack([p.grad for p in params])
                state = self.state[params[0]]
                buffer = state.setdefault("buffer", torch.zeros_like(grads))
                buffer.lerp_(grads, 1 - group["momentum"])
                update = self.orthogonal(grads.lerp(buffer, group["momentum"])) * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(params, update, strict=True):
                    p.sub_(u, alpha=group["lr"])

    @staticmethod
    def orthogonal(g: torch.Tensor) -> torch.Tensor:
        """Matrices (N, m, n) to matrices with the same singular vectors and singular values near 1."""
        x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        tall = x.shape[-2] > x.shape[-1]
        x = x.mT if tall else x
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return x.mT if tall else x
