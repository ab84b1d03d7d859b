"""`dinov3 finetune` from a checkpoint on disk to an adapter, results.json and a model card."""

import argparse
import json

import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.checkpoints import export
from dinov3_hf.commands import finetune
from dinov3_hf.evaluation.result import Result
from dinov3_hf.evaluation.results import format_table, read_results
from dinov3_hf.finetuning.adapters import load_adapter
from dinov3_hf.finetuning.arguments import FinetuneRecipe
from dinov3_hf.recipe import build_recipe, folder_of


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 32,
}
SMALL = ["--num-train", "16", "--num-test", "8", "--batch-size", "8", "--epochs", "1", "--num-workers", "0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return str(export(Dinov3Model(Dinov3Config(**SIZES)), tmp_path_factory.mktemp("model")))


def run(*argv) -> int:
    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
    return finetune.run(parser.parse_args(list(argv), argparse.Namespace(given=list(argv))))


def test_an_adapter_with_its_card_and_exports(checkpoint, tmp_path, capsys):
    flags = [
        "--train-tokens",
        "--export",
        "merged",
        "transformers-adapter",
        "--seed",
        "3",
        "--output-dir",
        str(tmp_path),
    ]
    assert run(checkpoint, *SMALL, *flags) == 0
    shown = capsys.readouterr().out
    record = read_results(str(tmp_path))
    result = record["results"][0]
    table = format_table([Result(result["task"], result["protocol"], result["metrics"])])
    assert table in shown and "trainable parameters" in shown
    assert result["data"]["train"]["images"] == 16 and result["data"]["test"]["images"] == 8
    assert record["settings"]["seed"] == 3 and record["model"]["sha256"]
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"{result['metrics'][0]['model']:.4f}" in card and 'load_adapter("adapter")' in card
    assert str(tmp_path) not in card and checkpoint not in card
    assert load_adapter(tmp_path / "adapter").config.num_labels == len(
        load_adapter(tmp_path / "adapter").config.id2label
    )
    for name in (
        "merged/model.safetensors",
        "transformers-adapter/adapter_model.safetensors",
        "recipe.yaml",
        "results.md",
    ):
        assert (tmp_path / name).is_file(), name
    with pytest.raises(ValueError, match="output_dir: .* holds a run"):
        run(checkpoint, *SMALL, *flags)
    assert run(checkpoint, *SMALL, *flags, "--resume") == 0
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["metrics"] == result["metrics"]


def test_a_recipe_file_and_flags_over_it(checkpoint, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(
        f"model: {checkpoint}\nmethod: frozen\nepochs: 4\nnum_train: 16\nnum_test: 8\n"
    )
    assert run("--config", str(tmp_path / "mine.yaml"), *SMALL, "--output-dir", str(tmp_path / "out")) == 0
    settings = read_results(str(tmp_path / "out"))["settings"]
    assert settings["method"] == "frozen" and settings["epochs"] == 1
    assert "Dinov3ForImageClassification.from_pretrained" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_a_folder_without_splits_is_divided(checkpoint, tmp_path, capsys):
    from dinov3_hf.data.scenes import load_scenes

    for index, row in enumerate(load_scenes("train", 20)):
        folder = tmp_path / "images" / str(row["label"] % 2)
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{index}.png")
    small = [*SMALL[4:], "--method", "frozen"]
    assert run(checkpoint, "--data", str(tmp_path / "images"), *small, "--output-dir", str(tmp_path / "out")) == 0
    assert "a fifth of it is held out as test" in capsys.readouterr().out
    data = read_results(str(tmp_path / "out"))["results"][0]["data"]
    assert data["train"]["images"] == 16 and data["test"]["images"] == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--method", "bitfit"], "method: got 'bitfit', accepted: frozen, lora, dora or full"),
        (["--epochs", "many"], "epochs: got 'many', accepted: a whole number of at least 1"),
        (["--random-init", "--export", "merged"], "export: got \\['merged'\\], accepted: nothing with random_init"),
        (["--data", "/nowhere/at/all"], "data: nothing found at"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(checkpoint, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(checkpoint, *flags, "--output-dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_no_model_is_refused():
    with pytest.raises(ValueError, match="model: missing, accepted: a model folder"):
        run()


@pytest.mark.parametrize("name", sorted(path.stem for path in folder_of(FinetuneRecipe).glob("*.yaml")))
def test_every_recipe_is_one(name):
    recipe = build_recipe(FinetuneRecipe, name, model="a/model").validate()
    assert recipe.task.model == "a/model" and name.startswith((recipe.task.task, "canopy_height"))
