"""What a run leaves behind, without the help of Python's garbage collector."""

import contextlib
import gc

import torch

FEW = 4  # numbers; a tensor of no more may wait for the garbage collector


def tensors() -> int:
    """How many tensors of more than a few numbers there are."""
    return sum(isinstance(x, torch.Tensor) and x.numel() > FEW for x in gc.get_objects())


@contextlib.contextmanager
def no_tensor_left():
    """No tensor is left by what is done here.

    Memory that only the garbage collector gives back is still taken when the video is decoded, so it does not run.
    """
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        yield
        assert tensors() <= before
    finally:
        gc.enable()
