"""Videos and clips are read as frames."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from dinov3_hf.data.sequences import clip_frames, count_starts, even_starts, read_videos


def test_videos_are_named_by_their_class():
    names = ClassLabel(names=["cat", "dog"])
    features = Features({"sequence": names, "frame": Value("float32")})
    rows = Dataset.from_dict({"sequence": [1, 0, 1, 0], "frame": [2.5, 1, 0.5, 0]}, features=features)
    assert [(video.name, video.rows) for video in read_videos(rows)] == [("dog", [2, 0]), ("cat", [3, 1])]


@pytest.mark.parametrize(
    "length, num_frames, stride, starts, middle, spread, frames",
    [
        (20, 8, 1, 13, [6], [0, 6, 12], [[0, 1, 2, 3, 4, 5, 6, 7], [12, 13, 14, 15, 16, 17, 18, 19]]),
        (20, 4, 3, 11, [5], [0, 5, 10], [[0, 3, 6, 9], [10, 13, 16, 19]]),
        (8, 8, 1, 1, [0], [0, 0, 0], [[0, 1, 2, 3, 4, 5, 6, 7]] * 2),
        (5, 4, 2, 1, [0], [0, 0, 0], [[0, 1, 3, 4]] * 2),
        (3, 5, 1, 1, [0], [0, 0, 0], [[0, 1, 1, 2, 2]] * 2),
        (2, 1, 9, 2, [0], [0, 1, 1], [[0], [1]]),
    ],
)
def test_frames_of_clips(length, num_frames, stride, starts, middle, spread, frames):
    assert count_starts(length, num_frames, stride) == starts
    assert even_starts(starts, 1) == middle and even_starts(starts, 3) == spread
    assert [clip_frames(length, num_frames, stride, start) for start in (0, starts - 1)] == frames
