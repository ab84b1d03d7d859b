"""Places of one image found again in another, by patches alone: nothing was trained for it (DINOv3, section 6.1.3)."""

from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch.nn.functional import cosine_similarity, normalize

from ..visualization.features import heat_map, mark_places, place_colours
from .encoder import Encoder
from .matching import find_matches, sample_tokens


@dataclass(frozen=True)
class ImagePair:
    """Two RGB images and their patch tokens [h,w,D]; all places are (x, y) in pixels of their image."""

    images: tuple[Image.Image, Image.Image]
    tokens: tuple[torch.Tensor, torch.Tensor]

    def find(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find places [K,2] of the first image in the second; returns places [K,2] and the cosines [K] of both."""
        first, second = self.tokens
        queries = sample_tokens(first, points.float() / self._patch(0))
        places = find_matches(queries, second)
        return places * self._patch(1), cosine_similarity(queries, sample_tokens(second, places), dim=1)

    def similarity(self, point: torch.Tensor) -> torch.Tensor:
        """Cosines [h,w] of the second image's patches with a place [2] of the first."""
        query = sample_tokens(self.tokens[0], point[None].float() / self._patch(0))
        return cosine_similarity(self.tokens[1], query, dim=2)

    def mutual(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Find the patches that are each other's most similar one: centres [M,2], [M,2] and cosines [M], the largest first."""
        first, second = (normalize(tokens.flatten(0, 1), dim=1) for tokens in self.tokens)
        cosines = first @ second.T
        there, back = cosines.argmax(1), cosines.argmax(0)
        kept = (back[there] == torch.arange(len(first), device=there.device)).nonzero()[:, 0]
        kept = kept[cosines[kept, there[kept]].argsort(descending=True, stable=True)]
        centres = [self._centres(index)[rows] for index, rows in enumerate((kept, there[kept]))]
        return *centres, cosines[kept, there[kept]]

    def _patch(self, index: int) -> torch.Tensor:
        """Return the width and height [2] in pixels of an image's patches."""
        rows, columns, _ = self.tokens[index].shape
        width, height = self.images[index].size
        return self.tokens[index].new_tensor([width / columns, height / rows])

    def _centres(self, index: int) -> torch.Tensor:
        rows, columns, _ = self.tokens[index].shape
        x, y = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
        return (torch.stack([x, y], 2).flatten(0, 1).to(self.tokens[index]) + 0.5) * self._patch(index)


def encode_pair(encoder: Encoder, first: Image.Image, second: Image.Image, side: int) -> ImagePair:
    """Encode two RGB images, the longer side of each seen at `side` pixels."""
    images = (first, second)
    return ImagePair(images, tuple(encoder.tokens(image, side).cpu() for image in images))


def draw_match(pair: ImagePair, place: torch.Tensor, match: torch.Tensor) -> tuple[Image.Image, Image.Image]:
    """Ring a place [2] of the first image, and its match [2] on the map of how similar the second one's places are.

    The less similar half of them is all dark.
    """
    cosines = pair.similarity(place)
    second = heat_map(pair.images[1], cosines, (cosines.median().item(), cosines.max().item()))
    return mark_places(pair.images[0], place[None]), mark_places(second, match[None])


def draw_mutual(pair: ImagePair, first: torch.Tensor, second: torch.Tensor) -> tuple[Image.Image, Image.Image]:
    """Dot places [M,2] of both images, those that belong together in the same colour, over the images faded to grey."""
    colours, drawn = place_colours(first), []
    for image, places in zip(pair.images, (first, second), strict=True):
        pale = Image.blend(ImageOps.grayscale(image).convert("RGB"), Image.new("RGB", image.size, "white"), 0.3)
        drawn.append(mark_places(pale, places, colours, radius=max(image.size) / 60))
    return tuple(drawn)
