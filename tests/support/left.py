"""What a run leaves behind, without the help of Python's garbage collector."""

import contextlib
import gc

import torch

FEW = 4  # numbers; a tensor of no more may wait for the garbage collector


def tensors() -> int:
    """How many tensors of more than a few numbers there are; the compiler's, which hold none, do not count."""
    kinds = torch.Tensor, torch.nn.Parameter
    return sum(type(x) in kinds and isinstance(x.numel(), int) and x.numel() > FEW for x in gc.get_objects())


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
