"""A compiler's backend that counts."""


class Graphs:
    """Runs each graph as it is and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward
