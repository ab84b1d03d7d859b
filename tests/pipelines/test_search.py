"""Features of the index against the model called by hand, its order against a loop, and files of all kinds."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from dinov3_hf import DinoTxtModel, DinoTxtProcessor, Dinov3ImageProcessor, Dinov3Model, tiny_checkpoint
from dinov3_hf.checkpoints.processors import find_processor
from dinov3_hf.data.scenes import SCENE_CLASSES, load_scenes
from dinov3_hf.pipelines import image_files
from dinov3_hf.pipelines.encoder import Encoder
from dinov3_hf.pipelines.image_files import ImageFiles
from dinov3_hf.pipelines.inputs import InputError, Limits
from dinov3_hf.pipelines.search import Embedder, ImageIndex, source_images


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained()


@pytest.fixture(scope="module")
def scenes():
    rows = load_scenes("validation", 100, image_size=64)
    return [row["image"].convert("RGB") for row in rows], np.array(rows["label"])


@pytest.fixture(scope="module")
def index(embedder, scenes):
    return ImageIndex.of(embedder.images, iter(scenes[0]), batch_size=32)


def png(seed=0, size=(20, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_features_are_the_models_own(embedder, index, scenes):
    name = tiny_checkpoint("text")
    model, processor = DinoTxtModel.from_pretrained(name).eval(), DinoTxtProcessor.from_pretrained(name)
    pixel_values = processor.image_processor(scenes[0], return_tensors="pt")["pixel_values"]
    ids = processor.tokenizer("a red cup", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = normalize(model.get_image_features(pixel_values), dim=1)
        text = normalize(model.get_text_features(ids)[0], dim=0)
    torch.testing.assert_close(index.features, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embedder.text("a red cup"), text, rtol=0, atol=1e-5)


def test_a_model_without_words_gives_class_tokens_and_says_so(scenes):
    embedder = Embedder.from_pretrained(tiny_checkpoint())
    pixel_values = find_processor(tiny_checkpoint())(scenes[0][:3], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = normalize(Dinov3Model.from_pretrained(tiny_checkpoint()).eval()(pixel_values).pooler_output, dim=1)
    torch.testing.assert_close(embedder.images(scenes[0][:3]), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="^text: got 'cup', accepted: only with a model that has a text tower$"):
        embedder.text("cup")
    assert embedder.unknown_words("anything") == []


def test_the_nearest_are_those_of_a_loop(index):
    query = index.features[17]
    cosines = [float(row @ query) for row in index.features]
    rows, found = index.nearest(query, 5)
    assert rows == sorted(range(100), key=lambda row: -cosines[row])[:5] and rows[0] == 17
    assert found == pytest.approx([cosines[row] for row in rows], abs=1e-6)
    assert len(index.nearest(query, 1000)[0]) == len(index) == 100


def test_words_find_their_class(embedder, index, scenes):
    """The bundled model knows these words: far above one in ten."""
    found = [
        (scenes[1][index.nearest(embedder.text(name), 5)[0]] == label) for label, name in enumerate(SCENE_CLASSES)
    ]
    assert np.mean(found) > 0.6


def test_words_never_taught_are_named(embedder):
    assert embedder.unknown_words("a red zeppelin") == ["zeppelin"]


def test_pictures_are_small_and_in_order(embedder):
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    index = ImageIndex.of(embedder.images, [Image.new("RGB", (600, 300), colour) for colour in colours], batch_size=2)
    for row, colour in enumerate(colours):
        assert index.picture(row).size == (256, 128)
        assert np.abs(np.array(index.picture(row).getpixel((9, 9))) - colour).max() < 6


def test_an_index_of_nothing_is_refused(embedder):
    with pytest.raises(InputError, match="^There is no image here that can be read"):
        ImageIndex.of(embedder.images, [])


def test_sources_give_their_images_but_those_that_are_none(tmp_path):
    for name, data in (("a", png(1)), ("b", b"no image"), ("c", png(3)), ("d", png(4))):
        (tmp_path / f"{name}.png").write_bytes(data)
    found = list(source_images(str(tmp_path), "train", 3, max_side=20))
    assert len(found) == 2 and [image.size for image in source_images(str(tmp_path), "train", 1, 10)] == [(10, 8)]
    for image, seed in zip(found, (1, 3), strict=True):
        assert np.array_equal(image, Image.open(io.BytesIO(png(seed))))


def test_files_and_archives_are_read_in_order(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("folder/b.png", png(1))
        archive.writestr("folder/", "")
        archive.writestr("folder/.hidden.png", png(9))
        archive.writestr("__MACOSX/b.png", png(9))
        archive.writestr("../../a.png", png(2, size=(80, 10)))
        archive.writestr("words.txt", "no image")
    (tmp_path / "one.png").write_bytes(png(3))
    files = ImageFiles([tmp_path / "many.zip", tmp_path / "one.png"], max_side=40)
    images = list(files)
    assert len(files) == len(images) == 4
    assert images[2] is None and images[1].size == (40, 5)
    for image, seed in ((images[0], 1), (images[3], 3)):
        assert np.array_equal(image, Image.open(io.BytesIO(png(seed))))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.zip", "one.png"]


def test_what_an_archive_hides_is_not_swallowed(tmp_path, monkeypatch):
    """More bytes than allowed, though the file itself is small."""
    monkeypatch.setattr(image_files, "LIMITS", Limits(max_bytes=10_000))
    monkeypatch.setattr("dinov3_hf.pipelines.inputs.LIMITS", Limits(max_bytes=10_000))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("padded.png", png() + bytes(1_000_000))
        archive.writestr("good.png", png())
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    assert [image and image.size for image in ImageFiles([tmp_path / "bomb.zip"], 64)] == [None, (20, 16)]


def test_too_many_none_and_damaged_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "LIMITS", Limits(max_images=2))
    (tmp_path / "one.png").write_bytes(png())
    with pytest.raises(InputError, match="^These are too many files: at most 2 are accepted.$"):
        # What comes after the limit is not looked at.
        ImageFiles([tmp_path / "one.png"] * 3 + [tmp_path / "gone.zip"], 64)
    for nothing in (None, []):
        with pytest.raises(InputError, match="^Choose at least one image, or a zip archive of images.$"):
            ImageFiles(nothing, 64)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("a.png", png())
    data = bytearray((tmp_path / "whole.zip").read_bytes())
    data[data.rindex(b"PK\1\2") + 1] = 0
    (tmp_path / "broken.zip").write_bytes(data)
    with pytest.raises(InputError, match="^This archive is damaged.$"):
        ImageFiles([tmp_path / "broken.zip"], 64)


def test_the_value_range_of_a_model_reaches_its_images(tmp_path):
    """Saved next to the weights, known to the encoder and the embedder, used for sources."""
    shutil.copytree(tiny_checkpoint(), tmp_path / "model")
    Dinov3ImageProcessor(size={"height": 48, "width": 48}, value_range=(0, 4095)).save_pretrained(tmp_path / "model")
    for reader in (Encoder, Embedder):
        assert reader.from_pretrained(tiny_checkpoint()).value_range is None
        assert tuple(reader.from_pretrained(str(tmp_path / "model")).value_range) == (0, 4095)
    (tmp_path / "images").mkdir()
    Image.fromarray(np.linspace(0, 4095, 600).reshape(20, 30).astype(np.uint16)).save(tmp_path / "images" / "a.png")
    (image,) = source_images(str(tmp_path / "images"), "train", 1, 64, (0, 4095))
    assert np.asarray(image).max() == 255
    assert not list(source_images(str(tmp_path / "images"), "train", 1, 64))
