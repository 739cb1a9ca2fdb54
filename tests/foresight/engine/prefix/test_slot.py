import pytest
import torch

from foresight.engine import Offload
from foresight.engine.prefix.slot import Slot, _empty, layout_bytes, layout_of
from foresight.engine.prefix.stream import Group, Stream

YES, NO = torch.tensor(True), torch.tensor(False)


CPU, ELSEWHERE = torch.device("cpu"), torch.device("cpu", 0)  # to the slot two devices, "meta" would lose the values


@pytest.mark.parametrize("waits_on", [None, ELSEWHERE])
def test_a_slot_keeps_the_last_write_whose_flag_is_true(waits_on):
    x = (torch.ones(1, 4, 2), torch.ones(1, 2, 2, dtype=torch.float16))
    slot = Slot(layout_bytes(layout_of(x)), CPU, Offload(waits_on))
    for value, flag in ((1, YES), (2, YES), (3, NO)):
        slot.write_where(flag, tuple(t * value for t in x))
        slot.to_offload()
    assert [t.unique().tolist() for t in slot.read(layout_of(x))] == [[2.0], [2.0]]
    assert [t.dtype for t in slot.read(layout_of(x))] == [torch.float32, torch.float16]


class CopyStream:
    """Stands for a GPU's second stream: writes down what waits for what."""

    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append("copies wait for computing")


def test_copies_run_on_the_hosts_stream_and_only_what_changed_is_copied(monkeypatch):
    log = []
    main, side = CopyStream(log), CopyStream(log)
    main.wait_stream = lambda other: log.append("computing waits for copies")
    monkeypatch.setattr(torch.cpu, "current_stream", lambda device: main)
    real = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, x, **_: (log.append("copy"), real(to, x))[1])
    x = (torch.ones(1, 4, 16),)
    slot = Slot(layout_bytes(layout_of(x)), CPU, Offload(ELSEWHERE, copy_stream=lambda device: side))

    def logged(*steps):
        log.clear()
        for step in steps:
            step()
        return list(log)

    out, back = ["copies wait for computing", "copy"], ["copies wait for computing", "copy"]
    assert logged(lambda: slot.write_where(YES, x)) == []  # nothing to bring back the first time
    assert slot.nbytes == 256  # on the device while a call writes
    assert logged(slot.to_offload) == out
    assert slot.nbytes == 256  # elsewhere between calls
    assert logged(slot.prefetch) == back  # ahead of need
    assert logged(lambda: slot.read(layout_of(x))) == ["computing waits for copies"]
    assert logged(slot.to_offload) == []  # unchanged
    assert torch.equal(slot.read(layout_of(x))[0], x[0])
    slot.to_offload()
    assert logged(slot.clear, slot.prefetch) == []  # a full evaluation brings nothing back
    assert slot.nbytes == 256


def test_without_pinned_memory_it_waits_in_pageable_memory(monkeypatch):
    real = torch.empty

    def empty(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    assert _empty(64, CPU, pinned=True).nbytes == 64


def test_less_a_base_only_where_the_flag_is_true():
    x, base = (torch.full((1, 2, 2), 5.0),), (torch.full((1, 2, 2), 3.0),)
    slot = Slot(64, CPU, Offload())
    slot.write_where(YES, x, base)
    slot.write_where(NO, (x[0] * 100,), base)
    assert slot.read(layout_of(x))[0].unique().tolist() == [2.0]


def group(blocks, streams=1):
    """What is kept of a call of so many streams, with exact samples."""
    return Group(streams, blocks, 0, 0, Offload())


def test_nothing_handed_out_or_taken_in_is_shared():
    x = (torch.ones(1, 4, 2),)
    store = group(1)
    store.refresh(0, x, False)
    store.keep_where(YES, x, None)
    x[0].zero_()  # the host writes to its own tensor
    first = store.slot.read(layout_of(x))
    first[0].zero_()  # and to what it was given
    assert store.slot.read(layout_of(x))[0].unique().tolist() == [1.0]
    assert store.refresh(0, x, False).item() == pytest.approx(8**0.5)  # 8 x (0 - 1)^2: the sample kept its 1


def test_layouts_of_one_model_share_the_bytes():
    video_text = (torch.ones(1, 6, 16), torch.ones(1, 2, 16))
    joined = (torch.full((1, 8, 16), 2.0),)
    store = group(2)
    store.refresh(0, video_text, False)
    store.refresh(1, joined, False)
    store.keep_where(YES, video_text, None)
    store.keep_where(YES, joined, None)
    assert store.slot.read(layout_of(joined))[0].unique().tolist() == [2.0]
    assert store.slot.nbytes == 8 * 16 * 4  # 8 rows of 16 fp32, once


def test_non_contiguous_outputs():
    x = (torch.arange(12.0).view(1, 3, 4).transpose(1, 2),)
    store = group(1)
    store.refresh(0, x, False)
    store.keep_where(YES, x, None)
    assert torch.equal(store.slot.read(layout_of(x))[0], x[0])
    assert store.refresh(0, x, False).item() == 0.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1,), (0,)])
def test_streams_take_what_is_theirs_into_a_call_with_others(order):
    """Two streams of one call, in the slot and in the samples, then in other company."""
    before, both = group(2, streams=2), [Stream(), Stream()]
    before.regroup(both, -1)
    x = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    before.refresh(0, (x,), False)
    before.refresh(1, (x + 100,), False)
    before.keep_where(YES, (x + 100,), None)
    streams = [both[i] for i in order]
    after = group(2, streams=len(streams))
    assert before.holds(both) and not after.holds(streams)
    after.regroup(streams, depth=1)
    assert after.holds(streams) and not before.holds(both) and not after.holds(both[:1] + streams)
    assert [s.group is after and s.row == i for i, s in enumerate(streams)] == [True] * len(order)
    rows = x[list(order)]
    assert torch.equal(after.samples[0][0], rows) and torch.equal(after.samples[1][0], rows + 100)
    assert torch.equal(after.slot.read(after.layouts[1])[0], rows + 100)
    assert after.refresh(0, (rows + 1,), False).item() == pytest.approx((12 * len(order)) ** 0.5)
