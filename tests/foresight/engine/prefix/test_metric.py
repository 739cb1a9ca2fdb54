import math

import pytest
import torch

from foresight.engine.prefix.metric import distance, rows_of, sample_of, sample_stride


@pytest.mark.parametrize(
    ("rows", "wanted", "stride"),
    [(512, 1024, 3), (3072, 1024, 3), (5120, 1024, 5), (6144, 1024, 5), (32760, 1024, 31), (9, 0, 1)],
)
def test_stride_is_odd_and_keeps_about_the_rows_wanted_and_a_third_at_most(rows, wanted, stride):
    assert sample_stride(rows, wanted) == stride


def test_a_sample_has_rows_over_the_videos_and_tokens_of_each_stream():
    x = torch.arange(2 * 6 * 3.0).view(2, 6, 3)  # 2 videos of 6 tokens
    one = rows_of(x, 1, 0)  # one stream with both
    assert sample_of(one, torch.arange(0, 12, 3)).tolist() == [[[0, 1, 2], [9, 10, 11], [18, 19, 20], [27, 28, 29]]]
    two = rows_of(x, 2, 0)  # a stream each
    assert sample_of(two, torch.arange(0, 6, 3)).tolist() == [[[0, 1, 2], [9, 10, 11]], [[18, 19, 20], [27, 28, 29]]]
    assert sample_of(two, None).tolist() == x.tolist()
    assert two.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert sample_of(two, None).untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_streams_may_be_stacked_along_another_dimension():
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)  # (T, H, B, C) with two videos for each of two streams
    rows = rows_of(x, 2, 2)
    assert rows.shape == (2, 2 * 3 * 2, 5)
    assert torch.equal(rows[1], x[:, :, 2:].flatten(0, -2))


def test_tensors_without_a_batch_are_one_stream():
    assert rows_of(torch.zeros(7, 5), 1, 0).shape == (1, 7, 5)


def test_distance_is_over_all_elements_of_all_tensors():
    video, text = torch.zeros(1, 3, 2), torch.zeros(1, 1, 2)
    # 6 elements off by 2 and 2 elements off by 4: 6 * 4 + 2 * 16 = 56, of 8 elements: a change (MSE) of 7
    apart = distance((video + 2, text + 4), (video, text), by_stream=False)
    assert apart.shape == () and apart.item() == pytest.approx(math.sqrt(56))


def test_distance_by_stream():
    before = torch.zeros(2, 3, 2)
    now = torch.stack([before[0] + 1, before[1] + 2])
    assert distance((now,), (before,), by_stream=True).tolist() == pytest.approx([math.sqrt(6), math.sqrt(24)])


def test_fp16_does_not_overflow():
    x = torch.full((1, 4, 8), 60000.0, dtype=torch.float16)
    apart = distance((x,), (-x,), by_stream=False)  # 120000 each, far above fp16's 65504
    assert apart.dtype == torch.float32
    assert apart.item() == pytest.approx(120000 * math.sqrt(32), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_squares_are_summed_in_fp32(dtype):
    """Against doubles: a thousandth part of a change must not get lost in what it is added to."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 500, 64, generator=g).to(dtype) for _ in range(2))
    exact = (a.double() - b.double()).norm().item()
    assert distance((a,), (b,), by_stream=False).item() == pytest.approx(exact, rel=1e-5)
