import pytest
import torch
from foresight_pack.foresight.store import Slot, Store, layout_bytes, layout_of

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.mark.parametrize("home", ["here", "elsewhere"])
def test_a_slot_keeps_the_last_write_whose_flag_is_true(home):
    # "meta" would lose the values, so both homes are the CPU; "elsewhere" takes the path through a parked copy
    x = (torch.ones(1, 4, 2), torch.ones(1, 2, 2, dtype=torch.float16))
    slot = Slot(
        layout_bytes(layout_of(x)), torch.device("cpu"), torch.device("cpu", 0 if home == "elsewhere" else None)
    )
    for value, flag in ((1, YES), (2, YES), (3, NO)):
        slot.write_where(flag, tuple(t * value for t in x))
        slot.park()
    assert [t.unique().tolist() for t in slot.read(layout_of(x))] == [[2.0], [2.0]]
    assert [t.dtype for t in slot.read(layout_of(x))] == [torch.float32, torch.float16]


def test_less_a_base_only_where_the_flag_is_true():
    x, base = (torch.full((1, 2, 2), 5.0),), (torch.full((1, 2, 2), 3.0),)
    slot = Slot(64, torch.device("cpu"), torch.device("cpu"))
    slot.write_where(YES, x, base)
    slot.write_where(NO, (x[0] * 100,), base)
    assert slot.read(layout_of(x))[0].unique().tolist() == [2.0]


def test_nothing_handed_out_or_taken_in_is_shared():
    x = (torch.ones(1, 4, 2),)
    store = Store(1, 0)
    store.refresh(0, x)
    store.keep_where(YES, x, None)
    x[0].zero_()  # the host writes to its own tensor
    first = store.slot.read(layout_of(x))
    first[0].zero_()  # and to what it was given
    assert store.slot.read(layout_of(x))[0].unique().tolist() == [1.0]
    assert store.refresh(0, x).item() == 1.0  # (0 - 1)^2: the sample kept its 1 as well


def test_layouts_of_one_model_share_the_bytes():
    video_text = (torch.ones(1, 6, 16), torch.ones(1, 2, 16))
    joined = (torch.full((1, 8, 16), 2.0),)
    store = Store(2, 0)
    store.refresh(0, video_text)
    store.refresh(1, joined)
    store.keep_where(YES, video_text, None)
    store.keep_where(YES, joined, None)
    assert store.slot.read(layout_of(joined))[0].unique().tolist() == [2.0]
    assert store.slot.nbytes == 8 * 16 * 4  # 8 rows of 16 fp32, once


def test_non_contiguous_outputs():
    x = (torch.arange(12.0).view(1, 3, 4).transpose(1, 2),)
    store = Store(1, 0)
    store.refresh(0, x)
    store.keep_where(YES, x, None)
    assert torch.equal(store.slot.read(layout_of(x))[0], x[0])
    assert store.refresh(0, x).item() == 0.0
