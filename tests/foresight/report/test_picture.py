"""The picture of an A/B comparison: where the videos are, and that no line leaves the picture."""

import numpy as np
import torch

from foresight.report import picture

TITLES, LINES = ("plain 4.00 s", "Foresight 1.00 s"), ["measured speed-up 4.00x, PSNR 44.1 dB", "Model, 50 steps"]
PAPER = (24, 26, 30)


def videos(height: int, width: int, frames: int = 2):
    g = torch.Generator().manual_seed(1)
    return [torch.rand(frames, height, width, 3, generator=g) for _ in range(2)]


def contains(frame: np.ndarray, part: np.ndarray) -> list[int]:
    """The columns at which a part stands in a frame, whatever the row."""
    h, w = part.shape[:2]
    return [
        x
        for x in range(frame.shape[1] - w + 1)
        for y in range(frame.shape[0] - h + 1)
        if (frame[y, x] == part[0, 0]).all() and (frame[y : y + h, x : x + w] == part).all()
    ]


def test_small_videos_stand_side_by_side_enlarged_by_a_whole_number():
    plain, other = videos(4, 6)
    frames = picture.comparison(plain, other, TITLES, LINES, 512)
    # a margin is 0.014 * 512 = 7, so a video has (512 - 3 * 7) / 2 = 245 pixels: 40 times 6 fit, and 5 are left over
    assert frames.dtype == np.uint8 and frames.shape[0] == 2 and frames.shape[2] == 512 and frames.shape[1] % 2 == 0
    for t in range(2):
        for clip, left in ((plain, 7), (other, 7 + 245 + 7)):
            large = (clip[t] * 255).round().to(torch.uint8).repeat_interleave(40, 0).repeat_interleave(40, 1).numpy()
            assert contains(frames[t], large) == [left + 5 // 2]


def test_large_videos_are_reduced():
    plain, other = torch.zeros(1, 300, 900, 3), torch.ones(1, 300, 900, 3)
    (frame,) = picture.comparison(plain, other, TITLES, LINES, 512)
    assert contains(frame, np.zeros((82, 245, 3), np.uint8)) == [7]  # 300 * 245 / 900 = 81.7
    assert contains(frame, np.full((82, 245, 3), 255, np.uint8)) == [7 + 245 + 7]


def test_the_sides_are_even_as_video_codecs_want_them():
    for height, width in ((5, 7), (5, 701), (33, 32)):
        assert all(side % 2 == 0 for side in picture.comparison(*videos(height, width), TITLES, LINES, 641).shape[1:3])


def test_every_line_is_written_and_no_line_leaves_the_picture():
    plain, other = videos(4, 6, frames=1)

    def below(lines):
        return picture.comparison(plain, other, TITLES, lines, 512)[0, -90:]

    assert (below(LINES) != below([LINES[0], "Model, 20 steps"])).any()
    assert (below(LINES) != below(["measured speed-up 9.00x, PSNR 44.1 dB", LINES[1]])).any()
    edges = np.r_[0:6, 506:512]  # of each row: margins, in which nothing may stand
    long = picture.comparison(plain, other, ("x" * 90, "y" * 90), ["a very long line " * 9, "another " * 20], 512)[0]
    assert (long[:, edges] == PAPER).all() and (long[-60:] != PAPER).any()
