"""Runs that sample one video one after the other, as Wan 2.2 does with two models: what one hands over to the next.

A run that knows that another one `goes_on` plans as if its end were a computed step. That is what it will be: the first
evaluation of the next run, by the next model. So no step before it is computed for its own sake, and the last ones may
be left out. What the run knows then goes to the next: the last two computed outputs, what forecasts have left in the
latent since, where the latent was, and how much more than expected the outputs bend.

The next run's first evaluation pays back what is owed, as any computed one does. Forecasts go on from it, along the
slope that was known before: from one model's output to another's there is no slope.
"""

from dataclasses import dataclass


@dataclass
class Stage:
    """Where a run stands among the runs of its video.

    Attributes:
        before: What the run before this one has left (`Run.left`), for this one alone; None for the first.
        goes_on: It is known that another run takes over what this one leaves.
        whole: Steps of all the runs together, None where that is unknown.
    """

    before: object = None
    goes_on: bool = False
    whole: int | None = None
