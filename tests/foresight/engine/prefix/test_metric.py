import pytest
import torch

from foresight.engine.prefix.metric import change, sample_rows, sample_stride


@pytest.mark.parametrize(
    ("rows", "wanted", "stride"), [(512, 1024, 3), (3072, 1024, 3), (6144, 1024, 5), (32760, 1024, 31), (9, 0, 1)]
)
def test_stride_is_odd_and_keeps_about_the_rows_wanted_and_a_third_at_most(rows, wanted, stride):
    assert sample_stride(rows, wanted) == stride


def test_a_sample_is_a_view_of_rows_over_batch_and_tokens():
    x = torch.arange(2 * 6 * 3.0).view(2, 6, 3)  # 12 rows of 3
    (sample,) = sample_rows((x,), 4)  # 12 // 4 = 3: every third row
    assert sample.tolist() == [[0, 1, 2], [9, 10, 11], [18, 19, 20], [27, 28, 29]]
    assert sample.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_change_is_the_mse_over_all_elements_of_all_streams():
    video, text = torch.zeros(1, 3, 2), torch.zeros(1, 1, 2)
    # 6 elements off by 2 and 2 elements off by 4: (6 * 4 + 2 * 16) / 8 = 7
    assert change((video + 2, text + 4), (video, text)).item() == 7.0


def test_fp16_does_not_overflow():
    x = torch.full((4, 8), 60000.0, dtype=torch.float16)
    delta = change((x,), (-x,))  # 120000^2 = 1.44e10, far above fp16's 65504
    assert delta.dtype == torch.float32
    assert delta.item() == pytest.approx(1.44e10, rel=1e-3)
