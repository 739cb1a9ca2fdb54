"""What the paper's method adds to a model, in operator calls: on a GPU, small blocks are bound by launching these."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foresight import PaperConfig
from foresight.engine import Run

BLOCKS = 12
NOTHING = {"threshold": 1e-12, "warmup_steps": 3}  # everything is measured, and nothing qualifies


class Operators(TorchDispatchMode):
    """Counts operator calls while `on`."""

    def __init__(self):
        super().__init__()
        self.count, self.on = 0, False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += self.on
        return function(*args, **(kwargs or {}))


def counted(shape, streams: int, dtype=torch.bfloat16, tensors: int = 1, interval: int = 2):
    """Operator calls by evaluation: its kind, in a block (the same in all of them), in all with what is done once."""
    run, rows = Run(PaperConfig(reuse_interval=interval, **NOTHING), steps=20), []
    for evaluation in range(12):
        operators, in_blocks = Operators(), set()
        with torch.inference_mode(), operators:
            operators.on = True
            run.begin_evaluation(1 - 0.05 * evaluation)
            call = run.begin_call(list(range(streams)), BLOCKS)
            for block in range(BLOCKS):
                operators.on = False
                output = tuple(torch.randn(shape).to(dtype) for _ in range(tensors))
                operators.on, before = True, operators.count
                call.block(block, output, lambda output=output: output)
                if block:  # the first one also makes the plan
                    in_blocks.add(operators.count - before)
            run.end_call(call)
        assert len(in_blocks) == 1
        rows.append((run.kind, in_blocks.pop(), operators.count))
    return rows[4:]  # behind warmup, and behind the first time that an index is made


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_measured_block_takes_three_operators_and_five_where_its_output_may_be_kept(streams, dtype):
    """Sample, difference, norm; and where the next evaluation may reuse: comparison, conditional copy."""
    rows = counted((streams, 96, 64), streams, dtype)
    assert {kind: in_block for kind, in_block, _ in rows} == {"full": 5, "reuse": 3}
    assert sum(in_block for _, in_block, _ in rows) / len(rows) == 4


@pytest.mark.parametrize(
    ("shape", "more", "expected"),
    [
        ((2, 96, 64), {"dtype": torch.float16}, {"full": 6, "reuse": 4}),  # differences of fp16 are taken in fp32
        ((8, 24, 64), {}, {"full": 6, "reuse": 4}),  # frames in the batch: seen as rows of a video first
        ((2, 96, 64), {"tensors": 2}, {"full": 10, "reuse": 7}),  # video and text: twice, and one norm of both
    ],
)
def test_other_layouts(shape, more, expected):
    assert {kind: in_block for kind, in_block, _ in counted(shape, 2, **more)} == expected


def test_what_is_done_once_per_evaluation_does_not_grow_with_the_blocks():
    rows = counted((2, 96, 64), 2)
    once = [total - in_block * BLOCKS for _, in_block, total in rows]
    assert max(once) <= 16
