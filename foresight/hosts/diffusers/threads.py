"""Who is inside of a transformer: a run is one thread's, and two that take turns in it would be taken for one."""

import threading

from ...engine.compiler import outside_graphs


class Threads:
    """The threads that are inside of a transformer's forward now.

    Attributes:
        crowded: Since the last run began, two were there at once.
        owner: The thread that the run under way belongs to.
    """

    def __init__(self):
        self.crowded, self.owner = False, 0
        self._inside: list[int] = []

    @outside_graphs()
    def enter(self) -> None:
        """This thread comes in."""
        me = threading.get_ident()
        self.crowded |= any(other != me for other in tuple(self._inside))
        self._inside.append(me)

    @outside_graphs()
    def leave(self) -> None:
        """It is out again."""
        self._inside.remove(threading.get_ident())

    def begin_run(self) -> None:
        """A run of this thread begins."""
        self.crowded, self.owner = False, threading.get_ident()

    @property
    def mine(self) -> bool:
        """Whether the run under way is this thread's."""
        return self.owner == threading.get_ident()
