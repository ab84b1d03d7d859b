"""Confusion matrices: rows are true classes, shades are shares, and of many classes the most frequent are drawn."""

import numpy as np
import torch

from dinov3_hf.visualization.confusion import confusion_picture
from dinov3_hf.visualization.style import text_width


def shade(picture, share: float) -> np.ndarray:
    """Return where [N,2] (row, column) a picture has the shade of a share."""
    wanted = 255 + share * (np.array((37, 99, 235)) - 255.0)
    return np.argwhere((np.abs(np.asarray(picture).astype(int) - wanted) <= 1.5).all(2))


def test_cells_are_shaded_by_the_share_of_their_row():
    picture = confusion_picture(torch.tensor([[1, 3], [0, 8]]), ["$cat", "dog"])
    quarter, most, whole = (np.median(shade(picture, share), axis=0) for share in (0.25, 0.75, 1.0))
    assert abs(quarter[0] - most[0]) < 4 and quarter[1] < most[1] - 40
    assert abs(most[1] - whole[1]) < 4 and most[0] < whole[0] - 40
    # Nothing of the class below was given the class to the left: white.
    assert (np.asarray(picture)[int(whole[0]), int(quarter[1])] == 255).all()
    assert len(shade(picture, 1.0)) > 0.7 * 56**2


def test_of_many_classes_those_of_the_most_images_are_drawn():
    counts, names = torch.diag(torch.tensor([1, 9, 5])), ["one", "two", "three"]
    found = confusion_picture(counts, names, max_classes=2)
    assert found.tobytes() == confusion_picture(counts[1:, 1:], names[1:]).tobytes()
    many = confusion_picture(torch.eye(80), [f"{'a long name ' * 9}{number}" for number in range(80)])
    assert max(many.size) < 1000
    assert len(shade(many, 1.0)) > 50 * 100


def test_long_names_are_cut_and_rows_without_images_are_white():
    size = confusion_picture(torch.eye(2), ["a" * 200, "b"]).size
    assert size[0] < 36 + text_width("a" * 40) + 500
    empty = confusion_picture(torch.tensor([[0, 0], [0, 4]]), ["never", "always"])
    whole = shade(empty, 1.0)
    row, column = whole[:, 0].min() - 28, whole[:, 1].min()
    assert (np.asarray(empty)[row, column + 3 : column + 50] == 255).all()
