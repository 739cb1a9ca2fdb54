"""By how much what was left out was off: it is computed as well, for the record, and compared with what was given."""

from collections.abc import Callable
from itertools import islice

import torch

from .blend import GUIDED, Blend
from .compiler import outside_graphs
from .history import by_part, missing, relative
from .stats import Evaluation
from .tensors import Tensors, random_numbers


class Validation:
    """The outputs of an evaluation that were left out, and what they would have been.

    Args:
        wanted: The user wants it; else nothing is computed or compared.
        blend: Where the outputs are conds, what knows how much of each the sampler takes.
        parts: How many the latent has.
    """

    def __init__(self, wanted: bool, blend: Blend | None, parts: int = 1):
        self._wanted, self._blend, self._parts = wanted, blend, parts
        self.active = False  # while an output is computed for the record, which then counts nothing
        self._missed: list[Tensors] = []  # of each output
        self._units: list[Tensors] = []
        self._factor, self._sizes = 1.0, []  # of what `measured` has given: over the error itself, numbers per output

    @outside_graphs(recursive=False)
    def compare(
        self, given: Tensors, compute: Callable[[], Tensors], unit: Callable[[Tensors], Tensors], device: torch.device
    ) -> None:
        """Compute what was left out and note the difference. Random numbers go on as if nothing had been computed.

        Args:
            given: What the sampler gets in place of `compute()`.
            unit: From an output to tensors whose rms the error is measured in.
        """
        if not self._wanted:
            return
        self.active, put_back = True, random_numbers(device)
        try:
            real = compute()
        finally:
            put_back()
            self.active = False
        with torch.no_grad():
            self._units.append(unit(real))
            self._missed.append(missing(given, real, self._units[-1]))

    def stop(self) -> None:
        """Compare nothing any more, and give back what was kept for it."""
        self._wanted, self._missed, self._units = False, [], []

    def measured(self) -> list[torch.Tensor]:
        """The errors of the evaluation that ends, 1-D on the device, to be read back."""
        missed, units, self._missed, self._units = self._missed, self._units, [], []
        self._factor, self._sizes = 1.0, []
        if not missed:
            return []
        blended = [self._blend.weighted(outputs) for outputs in (missed, units)] if self._blend else [None]
        if None in blended:
            self._factor = GUIDED if self._blend and len(missed) > 1 else 1.0
            found = [relative(*pair) for pair in zip(missed, units, strict=True)]
        else:
            found = [relative(blended[0], self._blend.quieted(blended[1]))]
        self._sizes = [len(errors) for errors in found]
        return found

    def settle(self, values: list[float], evaluation: Evaluation | None) -> list[float]:
        """Take the numbers of `measured` from the end of these, for the record; the others."""
        rest = values[: len(values) - sum(self._sizes)]
        mine = iter(values[len(rest) :])
        outputs = [list(islice(mine, size)) for size in self._sizes]
        if outputs:
            evaluation.note_missed([self._factor * error for error in by_part(outputs, self._parts)])
        return rest
