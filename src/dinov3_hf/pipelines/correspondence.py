"""Matching points between two images by the similarity of patch tokens, without training (DINOv3, section 6.1.3)."""

from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch.nn.functional import cosine_similarity, normalize

from ..visualization.features import heat_map, mark_places, place_colours
from .encoder import Encoder
from .matching import find_matches, sample_tokens


@dataclass(frozen=True)
class ImagePair:
    """Two RGB images and their patch tokens [h,w,D]; all points are (x, y) in pixels of their image."""

    images: tuple[Image.Image, Image.Image]
    tokens: tuple[torch.Tensor, torch.Tensor]

    def find(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Match points [K,2] of the first image in the second; returns the matches [K,2] and their cosines [K]."""
        first, second = self.tokens
        queries = sample_tokens(first, points.float() / self._patch(0))
        places = find_matches(queries, second)
        return places * self._patch(1), cosine_similarity(queries, sample_tokens(second, places), dim=1)

    def similarity(self, point: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarity [h,w] of all patches of the second image with a point [2] of the first."""
        query = sample_tokens(self.tokens[0], point[None].float() / self._patch(0))
        return cosine_similarity(self.tokens[1], query, dim=2)

    def mutual(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Find mutual nearest neighbours: pairs of patches each of which is the most similar one to the other.

        Returns their centres [M,2] and [M,2] and cosine similarities [M], the most similar pair first.
        """
        first, second = (normalize(tokens.flatten(0, 1), dim=1) for tokens in self.tokens)
        cosines = first @ second.T
        there, back = cosines.argmax(1), cosines.argmax(0)
        kept = (back[there] == torch.arange(len(first), device=there.device)).nonzero()[:, 0]
        kept = kept[cosines[kept, there[kept]].argsort(descending=True, stable=True)]
        centres = [self._centres(index)[rows] for index, rows in enumerate((kept, there[kept]))]
        return *centres, cosines[kept, there[kept]]

    def _patch(self, index: int) -> torch.Tensor:
        """Return the width and height [2] of a patch in pixels of image 0 or 1."""
        rows, columns, _ = self.tokens[index].shape
        width, height = self.images[index].size
        return self.tokens[index].new_tensor([width / columns, height / rows])

    def _centres(self, index: int) -> torch.Tensor:
        rows, columns, _ = self.tokens[index].shape
        x, y = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
        return (torch.stack([x, y], 2).flatten(0, 1).to(self.tokens[index]) + 0.5) * self._patch(index)


def encode_pair(encoder: Encoder, first: Image.Image, second: Image.Image, side: int) -> ImagePair:
    """Encode two RGB images, the longer side of each resized to `side` pixels."""
    images = (first, second)
    return ImagePair(images, tuple(encoder.tokens(image, side).cpu() for image in images))


def draw_match(pair: ImagePair, place: torch.Tensor, match: torch.Tensor) -> tuple[Image.Image, Image.Image]:
    """Draw a ring at a point [2] of the first image, and at its match [2] on a similarity map of the second image.

    The map is dark where the similarity is below its median.
    """
    cosines = pair.similarity(place)
    second = heat_map(pair.images[1], cosines, (cosines.median().item(), cosines.max().item()))
    return mark_places(pair.images[0], place[None]), mark_places(second, match[None])


def draw_mutual(pair: ImagePair, first: torch.Tensor, second: torch.Tensor) -> tuple[Image.Image, Image.Image]:
    """Draw matching points [M,2] of both images as dots of the same colour, over the images faded to grey."""
    colours, drawn = place_colours(first), []
    for image, places in zip(pair.images, (first, second), strict=True):
        pale = Image.blend(ImageOps.grayscale(image).convert("RGB"), Image.new("RGB", image.size, "white"), 0.3)
        drawn.append(mark_places(pale, places, colours, radius=max(image.size) / 60))
    return drawn[0], drawn[1]
