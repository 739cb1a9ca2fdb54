"""What is kept out of the compiler's graphs, and whose place is not taken."""

import pytest
import torch
import torch._dynamo  # the compiler is there, as somebody else has brought it

from foresight.engine import compiler


@pytest.fixture
def marked(monkeypatch):
    """A class with two marked methods, which alone are waiting."""
    monkeypatch.setattr(compiler, "_marked", [])

    class Owner:
        @compiler.outside_graphs()
        def one(self):
            return torch.compiler.is_compiling()

        @compiler.outside_graphs()
        def two(self):
            return 2

    return Owner


def inside(owner: type) -> bool:
    """Whether its method `one` runs inside of a graph where something that calls it is compiled."""
    torch.compiler.reset()  # it does not notice that a class has got another method since
    return torch.compile(lambda: owner().one(), backend="eager")()


def test_what_is_marked_is_decorated_once(marked):
    assert inside(marked)
    compiler.keep_out_of_graphs()
    assert not inside(marked)
    decorated = marked.one
    compiler.keep_out_of_graphs()
    assert marked.one is decorated


def test_what_somebody_else_has_put_there_stays(marked):
    other = lambda self: 3  # noqa: E731
    marked.two = other
    compiler.keep_out_of_graphs()
    assert marked.two is other and not inside(marked)
