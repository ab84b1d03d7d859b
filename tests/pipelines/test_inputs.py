"""Images, clips and words of strangers: what is read equals what was written, what is not gets a sentence."""

import io
import struct
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinov3_hf.pipelines import inputs
from dinov3_hf.pipelines.inputs import InputError, read_clip, read_image, read_prompts


def picture(size=(60, 40), seed=0) -> Image.Image:
    """Smooth, so that lossy formats keep it."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def save(tmp_path):
    def save(content, name="file", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **options)
        return path

    return save


def difference(first: Image.Image, second: Image.Image) -> float:
    return np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_accepted_format_is_read(kind, save):
    # Names say nothing about what a file is.
    image = read_image(save(picture(), "file.txt", format=kind))
    assert image.mode == "RGB" and difference(image, picture()) < {"JPEG": 3, "WEBP": 3, "GIF": 8}.get(kind, 0.01)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "LA", "I;16", "1"])
def test_every_mode_becomes_rgb(mode, save):
    grey = picture().convert("L")
    stored = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    image = read_image(save(stored, format="TIFF"))
    expected = stored.convert("L") if mode == "1" else grey
    assert image.mode == "RGB" and difference(image, expected.convert("RGB")) < 1.5


def test_the_rotation_a_camera_wrote_is_applied(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(save(picture(), format="PNG", exif=exif))
    assert difference(image, picture().transpose(Image.Transpose.ROTATE_270)) == 0


@pytest.mark.parametrize("size", [(800, 100), (100, 800), (3000, 1)])
def test_large_images_are_shrunk_in_proportion(size, save):
    image = read_image(save(picture(size), format="PNG"), max_side=80)
    assert image.size == ImageOps.contain(picture(size), (80, 80)).size if min(size) > 1 else image.size == (80, 1)
    assert read_image(save(picture((20, 10)), format="PNG"), max_side=80).size == (20, 10)


def test_sixteen_bits_are_read_as_in_training_or_get_a_sentence(save):
    twelve = Image.fromarray(np.linspace(0, 4095, 60).reshape(6, 10).astype(np.uint16))
    path = save(twelve, format="TIFF")
    with pytest.raises(InputError, match="^This image has more than 8 bits a channel, and what is black and white"):
        read_image(path)
    assert np.asarray(read_image(path, value_range=(0, 4095))).max() == 255


def test_the_first_frame_of_an_animation_is_read(save):
    frames = [picture(seed=seed) for seed in range(3)]
    path = save(frames[0], format="PNG", save_all=True, append_images=frames[1:])
    assert difference(read_image(path), frames[0]) == 0


def test_limits_are_those_of_the_header_and_the_file(save, monkeypatch):
    path = save(picture((50, 40)), format="PNG")
    monkeypatch.setattr(inputs, "LIMITS", replace(inputs.LIMITS, max_pixels=2000))
    assert read_image(path).size == (50, 40)
    monkeypatch.setattr(inputs, "LIMITS", replace(inputs.LIMITS, max_pixels=1999))
    # Refused before a byte of its pixels is decoded.
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(InputError, match="^This image has too many pixels"):
        read_image(path)
    monkeypatch.setattr(inputs, "LIMITS", replace(inputs.LIMITS, max_bytes=path.stat().st_size - 1))
    with pytest.raises(InputError, match="^This file has 0 MB: at most 0 MB are accepted."):
        read_image(path)


@pytest.mark.parametrize("path", [None, "", "/nowhere/image.png", "with\0zero"])
def test_missing_images_get_a_sentence(path):
    with pytest.raises(InputError, match="^(Choose an image first|This image is no longer here)"):
        read_image(path)


def test_no_reader_that_starts_programs_is_asked(save, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript was started"))
    buffer = io.BytesIO()
    picture().save(buffer, "EPS")
    with pytest.raises(InputError, match="^This file is no image we can read"):
        read_image(save(buffer.getvalue()))


# Clips


def animation(save, count, duration=100, kind="GIF"):
    frames = [Image.new("RGB", (30, 20), (index, 0, 0)) for index in range(count)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return save(
        frames[0], format=kind, save_all=True, append_images=frames[1:], duration=duration, optimize=False, **options
    )


def corners() -> Image.Image:
    """An image that differs from each of its turns."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :20], pixels[:24, 44:] = 255, (255, 0, 0)
    return Image.fromarray(pixels)


def video(path, count, rate=10, size=(64, 48), codec="mpeg4", suffix=".mp4", turn=(0, False), ratio=None, image=None):
    av = pytest.importorskip("av")
    path = path / f"clip{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if ratio:
            stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        if turn != (0, False):
            stream.set_display_rotation(*turn)
        for index in range(count):
            frame = image or Image.new("RGB", size, (0, 2 * index % 256, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_are_read_frame_by_frame(kind, save):
    frames, rate = read_clip(animation(save, 7, kind=kind), max_side=15)
    assert rate == pytest.approx(10)
    assert [frame.getpixel((5, 5))[0] for frame in frames] == list(range(7))
    assert {frame.size for frame in frames} == {(15, 10)} and {frame.mode for frame in frames} == {"RGB"}


# The eight ways to store a clip: degrees counterclockwise, and whether it is mirrored then.
HELD = [(degrees, mirrored) for degrees in (0, 90, 180, 270) for mirrored in (False, True)]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("degrees, mirrored", HELD)
def test_clips_are_turned_as_players_show_them(degrees, mirrored, suffix, tmp_path):
    path = video(tmp_path, 3, suffix=suffix, turn=(degrees, mirrored), image=corners())
    (frame, *_), _ = read_clip(path, max_side=64)
    expected = np.rot90(np.asarray(corners()), degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    assert np.asarray(frame).shape == expected.shape and difference(frame, expected) < 3


@pytest.mark.parametrize(
    "ratio, degrees, size",
    [("4/3", 0, (64, 36)), ("4/3", 90, (36, 64)), ("1/2", 0, (32, 48)), ("1/2", 270, (48, 32)), ("1/1", 0, (64, 48))],
)
def test_pixels_that_are_not_square_become_square(ratio, degrees, size, tmp_path):
    path = video(tmp_path, 3, turn=(degrees, False), ratio=ratio, image=corners())
    (frame, *_), _ = read_clip(path, max_side=64)
    expected = corners().rotate(degrees, expand=True).resize(size, Image.Resampling.BICUBIC)
    assert frame.size == size and difference(frame, expected) < 6


def test_animations_are_turned_too(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture(seed=seed) for seed in range(3)]
    path = save(frames[0], format="WEBP", save_all=True, append_images=frames[1:], lossless=True, exif=exif)
    read, _ = read_clip(path, 60)
    for frame, stored in zip(read, frames, strict=True):
        assert difference(frame, stored.transpose(Image.Transpose.ROTATE_270)) == 0


@pytest.mark.parametrize("codec, suffix", [("mpeg4", ".mp4"), ("mpeg4", ".avi"), ("mpeg4", ".mkv")])
def test_videos_are_read_frame_by_frame(codec, suffix, tmp_path):
    frames, rate = read_clip(video(tmp_path, 12, codec=codec, suffix=suffix), max_side=32)
    assert len(frames) == 12 and rate == pytest.approx(10) and frames[0].size == (32, 24)
    greens = [frame.getpixel((8, 8))[1] for frame in frames]
    assert np.abs(np.array(greens) - 2 * np.arange(12)).max() < 12


def test_long_clips_are_thinned_evenly(save, monkeypatch):
    monkeypatch.setattr(inputs, "LIMITS", replace(inputs.LIMITS, max_frames=10))
    for count, step in ((10, 1), (11, 2), (20, 2), (21, 4), (45, 8)):
        frames, rate = read_clip(animation(save, count), max_side=30)
        assert [frame.getpixel((5, 5))[0] for frame in frames] == list(range(0, count, step))
        assert rate == pytest.approx(10 / step)


def test_clips_beyond_the_limits_are_refused(save, tmp_path, monkeypatch):
    path = animation(save, 40, duration=1000)
    with pytest.raises(InputError, match="^This clip is too long: at most 30 seconds are accepted."):
        read_clip(path, 30)
    monkeypatch.setattr(inputs, "LIMITS", replace(inputs.LIMITS, max_clip_pixels=64 * 48 * 11))
    assert len(read_clip(video(tmp_path, 11), 30)[0]) == 11
    with pytest.raises(InputError, match="^This clip is too large"):
        read_clip(video(tmp_path, 12), 30)
    monkeypatch.setattr(inputs, "LIMITS", replace(inputs.LIMITS, max_pixels=64 * 48 - 1))
    with pytest.raises(InputError, match="^This clip has too many pixels"):
        read_clip(video(tmp_path, 5), 30)


def wave() -> bytes:
    """A WAV file of silence."""
    header = b"RIFF" + struct.pack("<I", 36 + 800) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    return header + b"data" + struct.pack("<I", 800) + bytes([128]) * 800


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "This file is empty."),
        (b"no clip at all" * 50, "This clip is damaged or of a kind we cannot read"),
        (wave(), "This clip is of a kind we cannot read"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "This clip is damaged or of a kind we cannot read"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "This clip is"),
    ],
)
def test_what_is_no_clip_gets_a_sentence(content, sentence, save):
    with pytest.raises(InputError, match=f"^{sentence}"):
        read_clip(save(content), 64)


def test_half_a_video_and_a_still_image_get_a_sentence(save, tmp_path):
    whole = video(tmp_path, 12).read_bytes()
    with pytest.raises(InputError, match="^This file holds no pictures"):
        read_clip(save(whole[: len(whole) // 2], "half"), 64)
    with pytest.raises(InputError, match="^This clip has fewer than two frames"):
        read_clip(save(picture(), format="PNG"), 64)
    with pytest.raises(InputError, match="^Choose a clip first"):
        read_clip(None, 64)


# Words


@pytest.mark.parametrize(
    "text, prompts",
    [
        ("tree", ["tree"]),
        ("a red  car ,Tree;\n boat\r\n,,", ["a red car", "Tree", "boat"]),
        ("boat, tree, Boat, TREE", ["boat", "tree"]),
        ("ba\0um,\u202ehaus\u200b", ["ba um", "haus"]),
        ("猫、犬, Überraschung", ["猫、犬", "Überraschung"]),
    ],
)
def test_words_are_split_and_cleaned(text, prompts):
    assert read_prompts(text) == prompts


@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, "Type at least one word."),
        ("\u200b , \0;", "Type at least one word."),
        (",".join(f"w{i}" for i in range(33)), "These are 33 words or phrases: at most 32 are accepted."),
        ("tree, " + "a" * 201, "A phrase has 201 characters: at most 200 are accepted."),
        ("word " * 10_000, "This text is too long: at most 32 words or phrases are accepted."),
    ],
)
def test_words_beyond_the_limits_are_refused(text, sentence):
    with pytest.raises(InputError) as error:
        read_prompts(text)
    assert str(error.value).startswith(sentence)
    assert len(read_prompts(",".join(f"w{i}" for i in range(32)))) == 32
