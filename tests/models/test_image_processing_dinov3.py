import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, DINOv3ViTImageProcessor

from dinov3_hf import Dinov3Config, Dinov3ImageProcessor
from dinov3_hf.checkpoints.processors import find_processor
from dinov3_hf.models import image_processing_dinov3


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((60, 80), (60, 80), (90, 50))
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resample": 3, "size": {"height": 64, "width": 96}},
        {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}},
    ],
)
def test_same_output_as_transformers_bit_for_bit(settings, images):
    expected = DINOv3ViTImageProcessor(**settings)(images, return_tensors="pt").pixel_values
    assert torch.equal(Dinov3ImageProcessor(**settings)(images, return_tensors="pt").pixel_values, expected)


def test_evaluation_protocol_of_the_docstring(images):
    processor = Dinov3ImageProcessor(size={"shortest_edge": 256}, resample=3, do_center_crop=True, crop_size=224)
    assert processor(images, return_tensors="pt").pixel_values.shape == (3, 3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_other_colour_modes_become_rgb(mode, images):
    pixels = Dinov3ImageProcessor()(images[0].convert(mode), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)


def test_images_already_in_unit_range_get_one_warning(monkeypatch):
    seen = []
    monkeypatch.setattr(image_processing_dinov3.logger, "warning_once", seen.append, raising=False)
    image = torch.rand(3, 32, 32)
    Dinov3ImageProcessor()(image, do_rescale=False)
    Dinov3ImageProcessor()((image * 255).to(torch.uint8))
    assert seen == []
    Dinov3ImageProcessor()(image)
    assert len(seen) == 1 and "pass do_rescale=False" in seen[0]


def test_round_trip_through_auto(tmp_path):
    Dinov3Config().save_pretrained(tmp_path)
    Dinov3ImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, Dinov3ImageProcessor) and loaded.size.height == 96


def test_the_value_range_travels_with_the_processor(tmp_path):
    Dinov3Config().save_pretrained(tmp_path)
    Dinov3ImageProcessor(value_range=(0, 4095)).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert list(processor.value_range) == list(find_processor(str(tmp_path)).value_range) == [0, 4095]
    twelve = np.linspace(0, 4095, 100).reshape(10, 10).astype(np.uint16)
    eight = Image.fromarray(np.floor(twelve / 4095 * 255 + 0.5).astype(np.uint8)).convert("RGB")
    settings = {"do_resize": False, "return_tensors": "pt"}
    expected = processor(eight, **settings).pixel_values
    for given in (Image.fromarray(twelve), twelve[None], torch.from_numpy(twelve.astype(np.int32))[None]):
        assert torch.equal(processor(given, **settings).pixel_values, expected)
    with pytest.raises(ValueError, match="^value_range: got 0 100 for uint16 values from 0 to 4095"):
        processor(Image.fromarray(twelve), value_range=(0, 100))


@pytest.mark.parametrize(
    "values", [np.arange(300).reshape(1, 20, 15), np.full((1, 9, 9), -1.0), np.full((1, 9, 9), 4000, np.uint16)]
)
def test_arrays_beyond_the_range_are_refused(values):
    with pytest.raises(ValueError, match=r"^value_range: got none for \w+ values from .*accepted: (two numbers)"):
        Dinov3ImageProcessor()(values)
    if values.dtype != np.uint16:
        assert Dinov3ImageProcessor(do_rescale=False, do_normalize=False)(values).pixel_values


def test_arrays_of_full_range_are_scaled():
    values = np.linspace(0, 65535, 81).astype(np.uint16).reshape(1, 9, 9)
    pixels = Dinov3ImageProcessor(do_resize=False, do_normalize=False)(values, return_tensors="pt").pixel_values
    assert pixels.min() == 0 and pixels.max() == pytest.approx(1) and len(pixels.unique()) == 81


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_float_tensors_follow_transformers_or_the_range(dtype):
    values = torch.linspace(0, 255, 108).round().reshape(3, 6, 6).to(dtype)
    settings = {"do_resize": False, "return_tensors": "pt"}
    expected = Dinov3ImageProcessor()(values.byte(), **settings).pixel_values
    found = Dinov3ImageProcessor()(values.requires_grad_(), **settings).pixel_values
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0)
    assert torch.equal(Dinov3ImageProcessor(value_range=(0, 255))(values, **settings).pixel_values, expected)
    with pytest.raises(ValueError, match="^value_range: got none for b?float[0-9]+ values from -1 to 254"):
        Dinov3ImageProcessor()(values - 1)
