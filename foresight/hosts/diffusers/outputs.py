"""Between what a transformer returns and what the engine forecasts of it."""

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from ...engine.compiler import outside_graphs
from ...engine.history import quieted
from ...engine.tensors import Tensors


class Result:
    """What a call of the transformer returned, as tensors with one cond each.

    A result is a tensor, a tuple or a diffusers output, and may hold lists and None.
    """

    def __init__(self, result: object):
        leaves, self._form = tree_flatten(result)
        self._others = {i: x for i, x in enumerate(leaves) if not isinstance(x, torch.Tensor)}
        self._count = len(leaves)
        self.tensors: Tensors = tuple(x for x in leaves if isinstance(x, torch.Tensor))
        self._dtypes = [x.dtype for x in self.tensors]

    def without_tensors(self) -> "Result":
        """The form alone, to make other results with."""
        self.tensors = ()
        return self

    def like(self, tensors: Tensors) -> object:
        """Such a result of other tensors."""
        rest = iter(x.to(dtype) for x, dtype in zip(tensors, self._dtypes, strict=True))
        leaves = [self._others[i] if i in self._others else next(rest) for i in range(self._count)]
        return tree_unflatten(leaves, self._form)


class View:
    """How the engine sees the results of one call: of a flow model as denoised latents, otherwise as they are.

    The conds of a call are outputs of their own: the first cond's parts come first (video, audio).

    Args:
        latents: The call's own.
        conds: How many of them are stacked.
        sigma: Share of noise for a flow model, with the sign that its velocity has; None for other models.
        several: The latents are parts of one (video, audio), and no items of a batch.
    """

    def __init__(self, latents: Tensors, conds: int, sigma: float | None, several: bool = False):
        self._latents, self._conds, self._sigma, self._several = latents, conds, sigma, several
        self._fits = True

    def fits(self, tensors: Tensors) -> bool:
        """Whether there is a latent for each output, from which it could be told."""
        self._fits = len(tensors) == len(self._latents) and all(
            self._is_for(d.shape, x.shape) for d, x in zip(tensors, self._latents, strict=True)
        )
        return self._fits

    def _is_for(self, output: torch.Size, latent: torch.Size) -> bool:
        if len(output) != len(latent) or output[0] != latent[0]:
            return False
        return self._sigma is None or all(n <= m for n, m in zip(output, latent, strict=True))

    def _per_cond(self, tensors: Tensors) -> Tensors:
        chunks = [x.chunk(self._conds) for x in tensors]
        return tuple(x for cond in zip(*chunks, strict=True) for x in cond)

    def _noisy(self, shapes: list[torch.Size]) -> list[torch.Tensor]:
        return [x[tuple(map(slice, shape))].float() for x, shape in zip(self._latents, shapes, strict=True)]

    def seen(self, tensors: Tensors) -> Tensors:
        """What the engine is given for these outputs of the model."""
        if self._sigma is not None:
            noisy = self._noisy([v.shape for v in tensors])
            tensors = tuple(x - self._sigma * v.float() for x, v in zip(noisy, tensors, strict=True))
        return self._per_cond(tensors)

    @outside_graphs()
    def unit(self, outputs: Tensors) -> Tensors:
        """What the errors of such outputs are measured in: the noise in the latent."""
        if self._sigma is None or not self._fits:
            return outputs
        noisy = self._per_cond(self._latents)
        found = tuple(x[tuple(map(slice, d.shape))].float() - d for x, d in zip(noisy, outputs, strict=True))
        return quieted(found, [abs(self._sigma)] * len(found)) if self._several else found

    def returned(self, outputs: Tensors) -> Tensors:
        """What the model would have returned: the reverse of `seen`."""
        n = len(self._latents)
        tensors = tuple(torch.cat(outputs[i::n]) if self._conds > 1 else outputs[i] for i in range(n))
        if self._sigma is None:
            return tensors
        noisy = self._noisy([d.shape for d in tensors])
        return tuple((x - d) / self._sigma for x, d in zip(noisy, tensors, strict=True))
