"""Zero-shot classification against naive loops and scikit-learn."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PilImage
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score

from dinov3_hf.evaluation.intervals import wilson_interval
from dinov3_hf.evaluation.zero_shot import evaluate_zero_shot, read_labels

from ..samples import tiny_aligned


NAMES = ["cat", "dog", "red house", "tree", "car", "boat"]


@pytest.fixture(scope="module")
def aligned():
    """A small random model whose tokenizer knows neither "photo" nor "boat"."""
    return tiny_aligned([f"a picture of a {name}" for name in NAMES[:5]], image_mean=[0.4, 0.5, 0.6])


def pictures(num):
    rng = np.random.default_rng(0)
    return [PilImage.fromarray(rng.integers(0, 256, (40, 30 + 7 * i, 3), dtype=np.uint8)) for i in range(num)]


def rows_of(labels, feature=None, broken=()):
    """Rows with one picture a label; those in `broken` cannot be decoded."""
    features = Features({"image": Image(), "label": feature or ClassLabel(names=NAMES)})
    images = [b"no image" if i in broken else picture for i, picture in enumerate(pictures(len(labels)))]
    images = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_evaluation_equals_sklearn(aligned):
    model, processor = aligned
    labels = [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 0, 3]
    rows = rows_of(labels, broken=(2, 5, 7))
    result = evaluate_zero_shot(model, processor, rows, templates=["a {}"], batch_size=3, progress=False)
    kept = [i for i in range(12) if i not in (2, 5, 7)]
    truth = [labels[i] for i in kept]
    with torch.no_grad():
        # As a user would call the model by hand.
        inputs = processor(images=[pictures(12)[i] for i in kept], return_tensors="pt")
        ids = processor.tokenizer([f"a {name}" for name in NAMES], padding=True, return_tensors="pt")["input_ids"]
        scores = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits_per_image.numpy()
    top1, top5 = result.metrics
    predicted = scores.argmax(1)
    # Four of the nine images are cats; five classes have images.
    right = accuracy_score(truth, predicted)
    interval = list(wilson_interval(round(9 * right), 9))
    assert top1 == {"metric": "top-1", "model": right, "chance": 4 / 9, "interval": interval}
    assert top5["model"] == top_k_accuracy_score(truth, scores, k=5, labels=range(6)) and top5["chance"] == 1
    assert [row["class"] for row in result.details["per_class"]] == ["cat", "dog", "red house", "tree", "car"]
    assert [row["images"] for row in result.details["per_class"]] == [4, 1, 1, 2, 1]
    recalls = recall_score(truth, predicted, labels=range(5), average=None, zero_division=0)
    assert [row["model"] for row in result.details["per_class"]] == pytest.approx(recalls.tolist())
    assert result.skipped_images == {"test": 3} and result.protocol["num_test"] == 9
    assert result.protocol["unknown_words"] == ["boat"]


def test_few_classes_have_no_top_5(aligned):
    result = evaluate_zero_shot(*aligned, rows_of([0, 1, 1], ClassLabel(names=NAMES[:3])), progress=False)
    assert [metric["metric"] for metric in result.metrics] == ["top-1"]
    assert result.protocol["templates"] == ["a picture of a {}", "a {}", "{}"]  # "photo" was never taught


def test_labels_by_index_and_by_name():
    assert read_labels(rows_of([2, 0]), "label")[0] == NAMES
    names, indices = read_labels(rows_of([2, 0]), "label", NAMES[::-1])
    assert names == NAMES[::-1] and indices.tolist() == [3, 5]  # the same names, in another order
    others = ["kitten", "puppy", "hut", "oak", "van", "ship"]
    assert read_labels(rows_of([2, 0]), "label", others)[1].tolist() == [2, 0]
    names, indices = read_labels(rows_of(["dog", "cat", "dog"], Value("string")), "label")
    assert names == ["cat", "dog"] and indices.tolist() == [1, 0, 1]
    assert read_labels(rows_of(["dog"], Value("string")), "label", NAMES)[1].tolist() == [1]
    assert read_labels(rows_of([4], Value("int64")), "label", NAMES)[1].tolist() == [4]


@pytest.mark.parametrize(
    "labels, feature, names, message",
    [
        ([6], Value("int64"), NAMES, "label_column: 'label' holds 6, accepted: 0 to 5, an index of class_names"),
        ([-1], None, None, "label_column: 'label' holds -1, accepted: 0 to 5"),
        (["cow"], Value("string"), NAMES, "label_column: 'label' holds 'cow', accepted: one of class_names"),
        ([0], None, NAMES[:4], "class_names: got 4, accepted: 6, one a class of label_column 'label'"),
        ([0], Value("int64"), None, "class_names: missing, accepted: one name a class, as 'label' holds numbers"),
        ([0.5], Value("float32"), NAMES, "label_column: got 'label', accepted: a column with one class a row"),
        ([None, 1], Value("int64"), NAMES, "label_column: got 'label', accepted: a column with one class a row"),
    ],
)
def test_labels_without_a_name_are_refused(labels, feature, names, message):
    with pytest.raises(ValueError) as error:
        read_labels(rows_of(labels, feature), "label", names)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_images_that_cannot_be_decoded_are_named(aligned):
    with pytest.raises(ValueError, match="^image_column: none of the 2 images in 'image' could be decoded$"):
        evaluate_zero_shot(*aligned, rows_of([0, 1], broken=(0, 1)), progress=False)
