"""Videos as groups of rows of a data set, and the frames of a clip from a video."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Refused
from .columns import check_column, named_values


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Video:
    """The rows of one sequence, in the order of their frames."""

    name: str
    rows: list[int]


def read_videos(
    rows: "Dataset", sequence_column: str = "sequence", frame_column: str = "frame", least: int = 2
) -> list[Video]:
    """Group rows, in any order, into videos, which come in the order of their first rows.

    Raises `Refused` for missing columns, for columns that do not name sequences or number frames, for a frame number
    that occurs twice in a sequence, and for a sequence of fewer than `least` frames.
    """
    accepted = "a column that names each row's sequence (ClassLabel, int or text)"
    names = named_values(rows, sequence_column, "sequence_column", accepted)
    check_column(rows, frame_column, "frame_column")
    if None in names:
        raise Refused(
            f"sequence_column: got {sequence_column!r}, accepted: {accepted}, where row {names.index(None)} has none"
        )
    frames = rows[frame_column][:]
    if not all(isinstance(frame, int | float) and math.isfinite(frame) for frame in frames):
        raise Refused(f"frame_column: got {frame_column!r}, accepted: a column of numbers that order the frames")
    row_of: dict[str | int | None, dict[float, int]] = {}
    for row, (name, frame) in enumerate(zip(names, frames, strict=True)):
        sequence = row_of.setdefault(name, {})
        if frame in sequence:
            raise Refused(
                f"frame_column: sequence {str(name)!r} has frame {frame} twice (rows {sequence[frame]} and "
                f"{row}), accepted: each frame once"
            )
        sequence[frame] = row
    videos = [Video(str(name), [sequence[frame] for frame in sorted(sequence)]) for name, sequence in row_of.items()]
    for video in videos:
        if len(video.rows) < least:
            frames = "1 frame" if len(video.rows) == 1 else f"{len(video.rows)} frames"
            raise Refused(f"sequence_column: sequence {video.name!r} has {frames}, accepted: at least {least}")
    return videos


def count_starts(length: int, num_frames: int, stride: int) -> int:
    """Return the number of frames of a video at which a clip of `num_frames` frames, every `stride`-th, can start."""
    return max(1, length - (num_frames - 1) * stride)


def even_starts(num_starts: int, num_clips: int) -> list[int]:
    """Return evenly spaced starts of clips from the first possible to the last; for one clip, the middle."""
    if num_clips == 1:
        return [(num_starts - 1) // 2]
    return [_rounded(clip * (num_starts - 1), num_clips - 1) for clip in range(num_clips)]


def clip_frames(length: int, num_frames: int, stride: int, start: int) -> list[int]:
    """Return the frames of the clip that starts at `start`.

    A video shorter than the clip gives evenly spaced frames from its first to its last, with repetitions if they are
    too few.
    """
    if length > (num_frames - 1) * stride:
        return [start + frame * stride for frame in range(num_frames)]
    return [_rounded(frame * (length - 1), num_frames - 1) for frame in range(num_frames)]


def _rounded(numerator: int, denominator: int) -> int:
    """Round a quotient to the nearest whole number, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
