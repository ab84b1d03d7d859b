"""Turning rows of a data set into training and test examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from ..data.pixels import BadImage
from ..data.views import standardize
from ..errors import Refused


if TYPE_CHECKING:
    import datasets


# Smallest area of a random crop, as a fraction of the image.
SMALLEST_CROP = 0.5


@dataclass(frozen=True)
class View:
    """Preprocessing: the whole image resized to a square of `size` pixels and standardised.

    Gives the same pixels as the image processor of transformers.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """Resize (bilinear, antialiased) and standardise a uint8 image [3,H,W]; returns [3,S,S]."""
        # In floating point, as the image processor does it, so that nothing is rounded twice.
        return F.resize(standardize(image[None], self.mean, self.std)[0], [self.size, self.size], antialias=True)


class Examples(Dataset):
    """Examples from the rows of a `datasets.Dataset`, read by `read(row, train)`.

    A row that cannot be read is replaced by the next readable one, and the example has `valid` False.
    """

    def __init__(self, rows: "datasets.Dataset", read: Callable[[dict, bool], dict], train: bool):
        self.rows, self.read, self.train = rows, read, train

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        for offset in range(len(self)):
            try:
                example = self.read(self.rows[(index + offset) % len(self)], self.train)
            except (BadImage, OSError):
                continue
            return {**example, "valid": offset == 0}
        raise Refused("data: no image can be decoded, accepted: at least one that can")


def collate(examples: list[dict]) -> dict:
    """Make a batch: tensors and numbers are stacked, dictionaries (the labels of detection) stay a list."""
    batch = {}
    for name in examples[0]:
        values = [example[name] for example in examples]
        if isinstance(values[0], torch.Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = values if isinstance(values[0], dict) else torch.tensor(values)
    return batch
