"""What stands in a model's options while it samples."""


class Wrapper:
    """An object whose functions stand there. Of deep copies of the options, which some packs make, each has the same.

    A run cannot be copied (it has a lock, and tensors), and a copy would be a run of its own.
    """

    def __deepcopy__(self, memo: dict) -> "Wrapper":
        return self
