"""What says, without being asked, that a call is of another run than the call before."""


class Signs:
    """What the calls of a run have said; one that an error ended between two of them is not over for a model."""

    def __init__(self):
        self._told: tuple[int | None, int] = None, -1  # steps of the run and the newest one, as the pipeline says it
        self._asked: set[str | None] = set()  # the contexts of that one

    def of_another_run(self, context: object | None) -> bool:
        """Whether the pipeline says so.

        Args:
            context: diffusers' cache context of the call, None where there is none.
        """
        (steps, step), (steps_before, before) = _says(context), self._told
        again = step == before >= 0 and getattr(context, "name", None) in self._asked
        return steps != steps_before or step < before or again

    def note(self, context: object | None, begins: bool) -> None:
        """A call of this run; whether an evaluation begins with it."""
        if begins:
            self._asked, self._told = set(), _says(context)
        self._asked.add(getattr(context, "name", None))


def _says(context: object | None) -> tuple[int | None, int]:
    """Steps of the run and the present one."""
    step = getattr(context, "step_index", None)
    return getattr(context, "num_inference_steps", None), -1 if step is None else step
