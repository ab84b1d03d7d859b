"""How rows of a data set become examples of a task."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from ..data.pixels import BadImage
from ..data.views import standardize
from ..errors import Refused


# Share of an image's area that a random crop shows at least.
SMALLEST_CROP = 0.5


@dataclass(frozen=True)
class View:
    """How a network sees images: whole, as squares of `size` pixels, standardised; as a stock image processor does it."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """Resize (bilinear, antialiased) and standardise a uint8 image [3,H,W]; returns [3,S,S]."""
        # In float, as the processor does it, so that nothing is rounded twice.
        return F.resize(standardize(image[None], self.mean, self.std)[0], [self.size, self.size], antialias=True)


class Examples(Dataset):
    """Examples of a `datasets.Dataset`; a row that cannot be read is replaced by the next one and marked `valid` False."""

    def __init__(self, rows, read: Callable[[dict, bool], dict], train: bool):
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
    """Stack what has one shape; `labels` that are dictionaries stay a list."""
    batch = {}
    for name in examples[0]:
        values = [example[name] for example in examples]
        if isinstance(values[0], torch.Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = values if isinstance(values[0], dict) else torch.tensor(values)
    return batch


def progress(items, text: str):
    """Return the items with a progress bar."""
    from tqdm import tqdm

    return tqdm(items, desc=text, disable=None)
