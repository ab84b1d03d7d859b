"""Fine-tuning a classifier: what learns, at which rates, that it resumes exactly, and what is refused."""

import json

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from dinov3_hf import Dinov3Config, Dinov3ForImageClassification, Dinov3Model
from dinov3_hf.checkpoints import export
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.errors import Refused
from dinov3_hf.finetuning.adapters import load_adapter
from dinov3_hf.finetuning.arguments import FinetuneRecipe
from dinov3_hf.finetuning.classification import Classification
from dinov3_hf.finetuning.examples import Examples, View, collate
from dinov3_hf.finetuning.run import finetune
from dinov3_hf.finetuning.trainer import parameter_groups


SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 32,
    "num_register_tokens": 2,
    "layerscale_value": 0.2,
}
TRAIN, TEST = load_scenes("train", 24), load_scenes("test", 10)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    return str(export(Dinov3Model(Dinov3Config(**SMALL)), tmp_path_factory.mktemp("base")))


def recipe_of(base, output, **fields) -> FinetuneRecipe:
    recipe = FinetuneRecipe()
    values = {"model": base, "output_dir": str(output), "epochs": 2, "batch_size": 8, "num_workers": 0} | fields
    for group in (recipe.task, recipe.data, recipe.optimization, recipe.output):
        for name in list(values):
            if hasattr(group, name):
                setattr(group, name, values.pop(name))
    assert not values
    return recipe


@pytest.mark.parametrize("method", ["frozen", "lora", "dora", "full"])
def test_each_method_trains_what_it_says_and_its_result_loads(base, tmp_path, method):
    result = finetune(recipe_of(base, tmp_path, method=method, lr=1e-2), TRAIN, TEST)
    before = Dinov3Model.from_pretrained(base)
    if method in ("frozen", "full"):
        model = Dinov3ForImageClassification.from_pretrained(tmp_path / "model").eval()
        moved = [
            name
            for name, value in before.state_dict().items()
            if not torch.equal(value, model.dinov3.state_dict()[name])
        ]
        # Nothing masks a patch here, so the mask token stays.
        expected = [name for name in before.state_dict() if "mask_token" not in name] if method == "full" else []
        assert moved == expected
    else:
        model = load_adapter(tmp_path / "adapter")
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert all("lora_" in name or "classifier" in name for name in tensors)
        assert ("magnitude" in "".join(tensors)) == (method == "dora")
        assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
        count = sum(tensor.numel() for tensor in tensors.values())
        assert result.details["trainable_parameters"] == count
    processor = AutoImageProcessor.from_pretrained(tmp_path / ("model" if method in ("frozen", "full") else "adapter"))
    # The metric is that of the saved weights with the saved image processor.
    images = processor([row["image"].convert("RGB") for row in decoded(TEST)], return_tensors="pt")
    with torch.no_grad():
        found = model(**images).logits.argmax(-1)
    (metric,) = result.metrics
    assert metric["metric"] == "top-1" and metric["method"] == method
    assert metric["model"] == pytest.approx((found == torch.tensor(TEST["label"])).float().mean().item())
    assert metric["chance"] == pytest.approx(max(map(list(TEST["label"]).count, range(20))) / 10)
    assert metric["interval"][0] <= metric["model"] <= metric["interval"][1]
    assert model.config.id2label[0] == TRAIN.features["label"].names[0]


def decoded(rows):
    return rows.cast_column("image", Image(decode=True))


def test_a_stopped_run_resumes_to_the_same_weights(base, tmp_path, monkeypatch):
    fields = {"epochs": 3, "train_tokens": True, "lr": 1e-2}
    whole = finetune(recipe_of(base, tmp_path / "whole", **fields), TRAIN, TEST)
    read, reads = Classification.read, []

    def stop(self, row, train):
        reads.append(row)
        if len(reads) > 2.5 * len(TRAIN):
            raise KeyboardInterrupt
        return read(self, row, train)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Classification, "read", stop)
        finetune(recipe_of(base, tmp_path / "stopped", **fields), TRAIN, TEST)
    assert not (tmp_path / "stopped" / "adapter").exists()
    with pytest.raises(Refused, match="output_dir: .* holds a run, accepted: another folder, --resume or"):
        finetune(recipe_of(base, tmp_path / "stopped", **fields), TRAIN, TEST)
    with pytest.raises(ValueError, match=r"resume: the recipe differs from the run in .*: rank \(was 8, now 4\)"):
        finetune(recipe_of(base, tmp_path / "stopped", **fields, rank=4, resume=True), TRAIN, TEST)
    resumed = finetune(recipe_of(base, tmp_path / "stopped", **fields, resume=True), TRAIN, TEST)
    assert resumed.details["resumed_from_epoch"] == 2 and whole.details["resumed_from_epoch"] is None
    assert resumed.metrics == whole.metrics
    assert resumed.details["trainable_parameters"] == whole.details["trainable_parameters"]
    first, second = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "stopped")
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    # PEFT keeps the patch embedding with the tokens; it must not have been trained, before or after the stop.
    before = Dinov3Model.from_pretrained(base).embeddings
    name = "base_model.model.dinov3.embeddings."
    assert torch.equal(first[f"{name}patch_embeddings.weight"], before.patch_embeddings.weight)
    assert not torch.equal(first[f"{name}register_tokens"], before.register_tokens)


def test_the_control_is_measured_and_not_kept(base, tmp_path):
    result = finetune(recipe_of(base, tmp_path, method="frozen", random_init=True, epochs=1), TRAIN, TEST)
    assert "random_init" in result.metrics[0] and "model" not in result.metrics[0]
    assert result.details["folder"] is None and not (tmp_path / "model").exists()


def test_layer_wise_rates():
    model = Dinov3ForImageClassification(Dinov3Config(**SMALL, num_labels=3))
    rates = {}
    for group in parameter_groups(model, lr=1.0, weight_decay=0.1, layerwise_decay=0.5):
        for parameter in group["params"]:
            rates[id(parameter)] = (group["lr"], group["weight_decay"])
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["classifier.weight"] == (1.0, 0.1) and found["classifier.bias"] == (1.0, 0.0)
    assert found["dinov3.norm.weight"] == (1.0, 0.0)
    assert found["dinov3.layer.1.attention.q_proj.weight"] == (0.5, 0.1)
    assert found["dinov3.layer.0.mlp.up_proj.weight"] == (0.25, 0.1)
    assert found["dinov3.layer.0.layer_scale1.lambda1"] == (0.25, 0.0)
    assert found["dinov3.embeddings.patch_embeddings.weight"] == (0.125, 0.1)
    assert found["dinov3.embeddings.register_tokens"] == (0.125, 0.0)


def test_the_network_sees_what_the_saved_processor_gives():
    from transformers import DINOv3ViTImageProcessor

    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1]}
    processor = DINOv3ViTImageProcessor(size={"height": 32, "width": 32}, **statistics)
    expected = processor([image], return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(View(32, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)).image(image), expected, atol=1e-5, rtol=0)


def test_splits_may_number_their_classes_differently(base, tmp_path):
    features = TEST.features.copy()
    features["label"] = ClassLabel(names=TEST.features["label"].names[::-1])
    last = len(features["label"].names) - 1
    rows = [{**row, "label": last - row["label"]} for row in TEST]
    turned = Dataset.from_list(rows, features=features)
    results = [
        finetune(recipe_of(base, tmp_path / str(n), epochs=1, method="frozen"), TRAIN, rows)
        for n, rows in enumerate((TEST, turned))
    ]
    assert results[0].metrics == results[1].metrics


def test_unreadable_images_are_replaced_and_skipped_in_the_metric(base, tmp_path):
    rows = [dict(row) for row in TEST]
    rows[3]["image"] = {"bytes": b"nothing", "path": None}
    broken = Dataset.from_list(rows, features=TEST.features)
    broken = broken.cast_column("image", Image(decode=False))
    result = finetune(recipe_of(base, tmp_path, epochs=1, method="frozen"), TRAIN, broken)
    assert result.skipped_images == {"test": 1}
    kept = finetune(
        recipe_of(base, tmp_path / "kept", epochs=1, method="frozen"),
        TRAIN,
        TEST.select([index for index in range(10) if index != 3]),
    )
    assert result.metrics[0]["model"] == pytest.approx(kept.metrics[0]["model"])


def test_examples_without_one_readable_image_are_refused():
    rows = Dataset.from_dict({"image": [{"bytes": b"x", "path": None}] * 3, "label": [0, 0, 0]})

    def read(row, train):
        from dinov3_hf.data.pixels import decode_image

        return {"pixel_values": decode_image(row["image"])}

    with pytest.raises(ValueError, match="data: no image can be decoded"):
        Examples(rows, read, train=True)[0]


def test_collate_stacks_tensors_and_keeps_dictionaries():
    examples = [
        {"pixel_values": torch.ones(3) * n, "labels": {"boxes": torch.ones(n, 4)}, "valid": n > 0} for n in (0, 2)
    ]
    batch = collate(examples)
    assert batch["pixel_values"].tolist() == [[0.0] * 3, [2.0] * 3] and batch["valid"].tolist() == [False, True]
    assert [len(label["boxes"]) for label in batch["labels"]] == [0, 2]


def labelled(labels):
    images = [TEST[index % 10]["image"] for index in range(len(labels))]
    return Dataset.from_dict(
        {"image": images, "label": labels}, Features(image=Image(decode=False), label=Value("string"))
    )


@pytest.mark.parametrize(
    "fields, splits, message",
    [
        (
            {},
            (labelled(["a", "b"]), labelled(["a", "c"])),
            "label_column: test has the class c, accepted: the 2 classes",
        ),
        ({"label_column": "kind"}, (TRAIN, TEST), "label_column: got 'kind', accepted: a column"),
        ({}, (TRAIN, TEST.select([])), "data: test has no rows"),
        ({"target_modules": ["qkv"]}, (TRAIN, TEST), "target_modules: got 'qkv', which matches nothing"),
        ({"image_size": 36}, (TRAIN, TEST), "image_size: got 36, accepted: a multiple of the model's patch size"),
        ({"rank": 0}, (TRAIN, TEST), "rank: got 0, accepted: a whole number of at least 1"),
        ({"method": "full", "train_tokens": True}, (TRAIN, TEST), "train_tokens: got True, accepted: false with full"),
        ({"method": "full", "export": ["transformers-adapter"]}, (TRAIN, TEST), "export: got 'transformers-adapter'"),
        ({"head": "dpt"}, (TRAIN, TEST), "head: got 'dpt', accepted: null for classification"),
        ({"test_split": "train"}, (TRAIN, TEST), "test_split: got 'train', accepted: another split"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(base, tmp_path, fields, splits, message):
    with pytest.raises(ValueError, match=message):
        finetune(recipe_of(base, tmp_path / "out", **fields), *splits)
    assert not (tmp_path / "out").exists()


def test_recipes_are_json(base, tmp_path):
    json.dumps(recipe_of(base, tmp_path).validate().as_flat_dict())
