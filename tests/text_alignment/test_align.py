"""`dinov3 align` from end to end, at the smallest size that is still the real thing."""

import io
import json
import os
import signal

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dinov3_hf import DinoTxtModel, DinoTxtProcessor, Dinov3Config, Dinov3Model
from dinov3_hf.checkpoints import export
from dinov3_hf.cli import main
from dinov3_hf.data.pixels import decode_image
from dinov3_hf.recipe import build_recipe
from dinov3_hf.text_alignment.align import align
from dinov3_hf.text_alignment.arguments import AlignRecipe, CaptionArguments
from dinov3_hf.text_alignment.pairs import CaptionBatches, ImageTransform, drop_words


TINY = [
    "--config", "tiny_cpu", "--text-hidden-size", "32", "--text-num-hidden-layers", "2",
    "--text-num-attention-heads", "2", "--text-intermediate-size", "64", "--context-length", "12",
    "--vocab-size", "300", "--batch-size", "4", "--steps", "6", "--lr-warmup-steps", "1", "--log-every", "1",
    "--save-every", "3", "--probe-every", "3", "--shuffle-block", "8", "--probe-images", "10",
    "--vision-head-drop-path-rate", "0.3", "--image-size", "32",
]  # fmt: skip


def picture(number, size=(40, 32)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    config = Dinov3Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8, image_size=32
    )
    torch.manual_seed(0)
    return export(Dinov3Model(config), folder)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Twenty rows: most have captions, one an empty list, one none, one a picture that is no picture."""
    folder = tmp_path_factory.mktemp("pairs")
    captions = [[f"picture number {index}", f"the {index}th"] for index in range(20)]
    captions[3], captions[7] = [], None
    images = [picture(index) for index in range(20)]
    images[11] = {"bytes": b"nothing", "path": None}
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "captions": datasets.List(datasets.Value("string"))}
    )
    datasets.Dataset.from_dict({"image": images, "captions": captions}, features=features).to_parquet(
        folder / "train-0.parquet"
    )
    return folder


def run(backbone, captioned, output, *flags):
    data = ["--data", str(captioned / "train-0.parquet"), "--max-bad-images", "0.5"]
    return main(["align", *TINY, "--backbone", str(backbone), *data, "--output-dir", str(output), *flags])


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(backbone, captioned, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    assert run(backbone, captioned, output) == 0
    return output


def test_run_leaves_a_model_that_loads_and_a_frozen_backbone(finished, backbone):
    model, processor = (kind.from_pretrained(finished / "model") for kind in (DinoTxtModel, DinoTxtProcessor))
    image = Image.open(io.BytesIO(picture(0)["bytes"]))
    inputs = processor(text=["picture number 0", "a cat"], images=[image], return_tensors="pt", padding="max_length")
    with torch.inference_mode():
        output = model.eval()(**inputs)
    assert output.logits_per_image.shape == (1, 2) and inputs["input_ids"].shape == (2, 12)
    before = load_file(backbone / "model.safetensors")
    after = {name.removeprefix("vision_model."): t for name, t in model.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert processor.unknown_words(["a picture of a giraffe", "the number"]) == ["a", "of", "giraffe"]
    card = (finished / "model" / "README.md").read_text()
    assert "Its training captions have" in card and "picture" in card and str(backbone) not in card
    assert str(backbone) not in (finished / "model" / "config.json").read_text()
    logged = lines(finished)
    assert {"contrastive", "batch_accuracy", "logit_scale", "grad_norm_dinotxt"} <= logged[-1].keys()
    assert logged[-1]["bad_images"] >= 3 and logged[-1]["images_read"] == 24 + logged[-1]["bad_images"]


@pytest.mark.parametrize("cached", [False, True])
def test_stopped_run_equals_one_without_a_stop(backbone, captioned, finished, tmp_path, cached, monkeypatch):
    output, flags = tmp_path / "out", ["--cache-features", str(tmp_path / "features")] if cached else []
    expected = lines(finished)
    if cached:
        assert run(backbone, captioned, tmp_path / "whole", *flags) == 0
        expected = lines(tmp_path / "whole")
    from dinov3_hf.text_alignment import alignment

    after = alignment.TextAlignment.after_step

    def stop_after_four(self, step, values):
        after(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(alignment.TextAlignment, "after_step", stop_after_four)
    assert run(backbone, captioned, output, *flags) == 143
    monkeypatch.setattr(alignment.TextAlignment, "after_step", after)
    assert run(backbone, captioned, output, *flags, "--resume") == 0
    assert [line["loss"] for line in lines(output)] == [line["loss"] for line in expected]


def test_cached_features_train_as_the_backbone_does(backbone, captioned, tmp_path):
    """The cache holds fp16: the losses agree to its rounding. Rows come in another order, so one epoch is compared."""
    folder = tmp_path / "features"
    assert run(backbone, captioned, tmp_path / "out", "--cache-features", str(folder)) == 0
    note = json.loads((folder / "features.json").read_text())
    assert (note["rows"], note["read"], note["bad"], note["finished"]) == (17, 20, 3, True)
    rows = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")
    model = Dinov3Model.from_pretrained(backbone).eval()
    transform = ImageTransform(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = model(transform(decode_image(picture(4)))[None]).last_hidden_state[0]
    index = [row["captions"][0] for row in rows].index("picture number 4")
    found = torch.frombuffer(bytearray(rows[index]["vision_tokens"]), dtype=torch.float16).view(-1, 32)
    assert torch.allclose(found.float(), expected, atol=5e-3)
    other = run(backbone, captioned, tmp_path / "two", "--cache-features", str(folder), "--image-size", "40")
    assert other == 2


def test_backbone_by_reference(backbone, captioned, tmp_path, finished):
    assert run(backbone, captioned, tmp_path / "out", "--save-backbone", "false") == 0
    names = load_file(tmp_path / "out" / "model" / "model.safetensors").keys()
    assert not any(name.startswith("vision_model.") for name in names)
    ids, pixels = torch.randint(3, 60, (3, 12)), torch.randn(2, 3, 32, 32)
    first, second = (
        DinoTxtModel.from_pretrained(folder / "model").eval()(ids, pixels).logits_per_image
        for folder in (tmp_path / "out", finished)
    )
    assert torch.equal(first, second)


def test_the_transform_is_that_of_the_exported_processor(finished):
    processor = DinoTxtProcessor.from_pretrained(finished / "model").image_processor
    transform = ImageTransform(32, processor.image_mean, processor.image_std)
    image = decode_image(picture(5, (50, 70)))
    theirs = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(transform(image), theirs, atol=1e-5)


def test_each_of_several_captions_is_drawn_and_the_draw_is_a_function_of_the_step(captioned, finished):
    rows = datasets.load_dataset("parquet", data_files=str(captioned / "*.parquet"), split="train", streaming=True)
    tokenizer = DinoTxtProcessor.from_pretrained(finished / "model").tokenizer
    data, transform = CaptionArguments(max_bad_images=0.5, shuffle_block=8), ImageTransform(16, [0.5] * 3, [0.5] * 3)

    def batches(rank, world):
        return iter(CaptionBatches(rows, data, transform, tokenizer, 32, 4, 0, rank, world))

    both, first = [next(batches(0, 1)) for _ in range(1)], [next(batches(0, 1))]
    assert torch.equal(both[0]["input_ids"], first[0]["input_ids"]) and both[0]["pixel_values"].shape == (4, 3, 16, 16)
    texts = set()
    for batch, _ in zip(batches(0, 1), range(20), strict=False):
        texts |= set(tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True))
    assert any(text.strip().startswith("picture") for text in texts) and any(
        text.strip().startswith("the") for text in texts
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image-size", "20"], "image_size: got 20, accepted: a multiple of the backbone's patch size (8)"),
        (
            ["--caption-columns", "words"],
            "caption_columns: got words, accepted: columns of the data set (image, captions)",
        ),
        (
            ["--tokenizer", "nowhere", "--train-tokenizer", "false"],
            "tokenizer: got 'nowhere', accepted: clip, or the folder",
        ),
        (["--backbone", "nowhere/at/all"], "backbone: no config.json in 'nowhere/at/all'"),
        (
            ["--cache-features", "f", "--random-crop-scale", "0.5", "1"],
            "cache_features: got 'f', accepted: null with random",
        ),
        (["--batch-size", "1"], "batch_size: got 1, accepted: a whole number of at least 2"),
        (
            ["--text-hidden-size", "33"],
            "text_hidden_size: got 33, accepted: a multiple of text_num_attention_heads (2)",
        ),
        (["--stepz", "3"], "unknown flag --stepz; did you mean --steps?"),
    ],
)
def test_bad_input_is_refused_in_one_line(backbone, captioned, tmp_path, capsys, flags, message):
    try:
        code = run(backbone, captioned, tmp_path / "out", *flags)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and message in error
    assert not (tmp_path / "out" / "recipe.yaml").exists()


def test_a_text_tower_and_a_backbone_of_another_width_do_not_pair(finished, backbone, tmp_path):
    other = Dinov3Model(
        Dinov3Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8)
    )
    export(other, tmp_path / "other")
    model = DinoTxtModel.from_pretrained(finished / "model")
    model.save_pretrained(tmp_path / "dinotxt", backbone=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="backbone: .* has hidden_size 64, accepted: 32"):
        DinoTxtModel.from_pretrained(tmp_path / "dinotxt")


def test_recipes_are_valid():
    for name in ("tiny_cpu", "vitl16_dinotxt"):
        assert build_recipe(AlignRecipe, name).towers.vision_head_layers == 2
    assert callable(align)


def test_words_are_dropped_at_the_asked_share_but_never_all():
    rng = np.random.default_rng(0)
    words = [drop_words("a wavy purple tree", 0.5, rng).split() for _ in range(2000)]
    assert all(1 <= len(some) <= 4 for some in words) and {"tree"} < {word for some in words for word in some}
    # 2 of 4 remain on average; one more where none would (1 in 16).
    assert abs(np.mean([len(some) for some in words]) - (2 + 1 / 16)) < 0.08
    assert drop_words("one", 0.99, rng) == "one" and drop_words("a b", 0.0, rng) == "a b"
