"""How an image becomes what a model sees."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PilImage

from dinov3_hf.data.views import Preprocessing, WholeImage, image_sizes

from ..samples import SIZES, images_of_sizes


def test_whole_images_keep_their_shape():
    view = WholeImage(32, 8)
    assert view.size(100, 50) == (64, 32) and view.size(50, 70) == (32, 48) and view.size(50, 72) == (32, 48)
    assert view.size(1, 1000) == (32, 32000)
    rows = images_of_sizes()
    assert image_sizes(rows, "image") == [SIZES[index % 5] for index in range(12)]
    turned = PilImage.fromarray(np.zeros((10, 30, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, format="JPEG", exif=exif)
    rows = Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}]}, Features({"image": Image()}))
    assert image_sizes(rows, "image") == [(30, 10)]


def test_preprocessing_resizes_the_shorter_side_then_crops():
    image = torch.randint(0, 256, (3, 40, 80), dtype=torch.uint8, generator=torch.manual_seed(0))
    kept = Preprocessing(image_size=32, resize_size=40).image(image)
    assert torch.equal(kept, image[:, 4:36, 24:56])
    assert Preprocessing(28, 32).image(image).shape == (3, 28, 28)
    normal = Preprocessing(32, 40, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4)).normalize(kept[None])
    expected = (kept[2].double() / 255 - 0.3) / 0.4
    torch.testing.assert_close(normal[0, 2].double(), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="resize_size: got 20, accepted: at least image_size"):
        Preprocessing(32, 20)


def test_mask_follows_the_image_through_resize_and_crop():
    mask = torch.arange(3).repeat_interleave(16)[None].expand(48, 48) * 20
    image = mask.to(torch.uint8).expand(3, 48, 48)
    preprocessing = Preprocessing(image_size=16, resize_size=24)
    cut = preprocessing.mask(mask)
    inside = [0, 1, 2, 5, 6, 7, 8, 9, 10, 13, 14, 15]  # columns away from edges, where the image blends
    assert torch.equal(cut[:, inside], preprocessing.image(image)[0][:, inside].long())
    assert set(cut.unique().tolist()) <= {0, 20, 40}
