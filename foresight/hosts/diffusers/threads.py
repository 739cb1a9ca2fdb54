"""Who is inside of a transformer: a run is one thread's, and two that take turns in it would be taken for one."""

import threading

from ...engine.compiler import outside_graphs

ALONE = 8  # calls in a row with nobody else inside, after which a transformer is one thread's again


class Threads:
    """The threads that are inside of a transformer's forward now.

    Attributes:
        crowded: Two were there at once, since the last run began and in one of the last calls.
        owner: The thread that the run under way belongs to.
    """

    def __init__(self):
        self.crowded, self.owner = False, 0
        self._inside: list[int] = []
        self._alone = 0

    @outside_graphs()
    def enter(self) -> None:
        """This thread comes in."""
        me = threading.get_ident()
        self._inside.append(me)  # first: of two that come at once, one at least sees the other
        if any(other != me for other in tuple(self._inside)):
            self._alone, self.crowded = 0, True
        else:
            self._alone += 1
            self.crowded &= self._alone < ALONE

    @outside_graphs()
    def leave(self) -> None:
        """It is out again."""
        self._inside.remove(threading.get_ident())

    def end_run(self) -> None:
        """A run is over; who comes next is not in a crowd until another comes too."""
        self.crowded = False

    def begin_run(self) -> None:
        """A run of this thread begins."""
        self.owner = threading.get_ident()

    @property
    def mine(self) -> bool:
        """Whether the run under way is this thread's."""
        return self.owner == threading.get_ident()
