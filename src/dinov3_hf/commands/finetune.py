"""`dinov3 finetune`: train a head, adapters or a whole backbone on labelled images."""

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3_hf.provenance import describe_weights, is_hub_id, versions

from ..data.splits import draw_rows, split_off_test
from ..terminal import is_first_process, print_next


if TYPE_CHECKING:
    from datasets import Dataset

    from dinov3_hf.finetuning.arguments import FinetuneRecipe


# The subset of the rendered scenes that each task uses; NUM_SCENES says how many by default.
SCENES = {"classification": "single", "segmentation": "crowded", "depth": "crowded", "detection": "crowded"}
# The tasks' names on the Hub.
HUB_TASKS = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "detection": "object-detection",
}
NUM_SCENES = {"train": 2000, "test": 500}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dinov3_hf.finetuning.arguments import FinetuneRecipe
    from dinov3_hf.recipe import add_recipe_flags

    add_recipe_flags(parser, FinetuneRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.checkpoints import load_backbone
    from dinov3_hf.evaluation.results import format_table, write_results
    from dinov3_hf.finetuning.arguments import FinetuneRecipe
    from dinov3_hf.finetuning.run import finetune
    from dinov3_hf.recipe import recipe_from_flags

    recipe = recipe_from_flags(arguments, FinetuneRecipe)
    train, test = load_splits(recipe)
    result = finetune(recipe, train, test)
    if is_first_process():
        result.hub_task = HUB_TASKS[recipe.task.task]
        result.data = {
            "source": recipe.data.data,
            "train": {"split": recipe.data.train_split, "images": len(train), "fingerprint": train._fingerprint},
            "test": {"split": recipe.data.test_split, "images": len(test), "fingerprint": test._fingerprint},
        }
        assert recipe.task.model is not None
        record: dict[str, Any] = {
            "results": [result],
            "model": describe_weights(recipe.task.model, load_backbone(recipe.task.model)),
            "settings": recipe.as_flat_dict(),
            "versions": versions(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        output = Path(recipe.output.output_dir)
        write_results(record, output)
        details = result.details
        if details["folder"]:
            write_card(record, Path(details["folder"]))
        print(format_table(record["results"]))
        print(
            f"{details['trainable_parameters']:,} trainable parameters, backbone of {details['parameters']:,}, "
            f"{details['seconds']:.0f} s"
        )
        if skipped := result.skipped_images["test"]:
            print(f"{skipped} test images could not be decoded and were skipped")
        print(
            f"{details['folder'] or 'random init is a baseline: its weights are not saved'}, "
            f"results: {output / 'results.json'}"
        )
        if not recipe.task.random_init and not recipe.output.export:
            baseline = f"{output}-random-init"
            print_next(
                ["finetune", *arguments.given, "--random-init", "--output-dir", baseline],
                ["compare", str(output), baseline],
            )
    return 0


def load_splits(recipe: "FinetuneRecipe") -> tuple["Dataset", "Dataset"]:
    """Return the train and test rows, of which `num_train` and `num_test` are drawn by the seed.

    Prints what the source was taken for.
    """
    from dinov3_hf.data.sources.account import print_account
    from dinov3_hf.data.streams import load_source

    data, seed = recipe.data, recipe.optimization.seed
    source = f"scenes:{SCENES[recipe.task.task]}" if data.data == "scenes" else data.data
    asked = ((data.train_split, data.num_train), (data.test_split, data.num_test))
    train, test = (
        load_source(
            source, split, streaming=False, image_column=data.image_column, num_images=count or NUM_SCENES[name]
        )
        for name, (split, count) in zip(NUM_SCENES, asked, strict=True)
    )
    for (split, _), rows in zip(asked, (train, test), strict=True):
        print_account(source, split, rows, data.image_column)
    train, test = split_off_test(train, test, seed, data.data, data.test_split)
    return draw_rows(train, data.num_train, seed), draw_rows(test, data.num_test, seed)


CARD = """---
library_name: {library}
{base}tags:
- dinov3
- {task}
---

# {title}

{summary}

```python
{snippet}
```
"""
LOAD_ADAPTER = """from dinov3_hf.finetuning.adapters import load_adapter

model = load_adapter("{folder}")  # a PeftModel; base="..." if the base is stored elsewhere"""
LOAD_MODEL = """from {module} import {name}

model = {name}.from_pretrained("{folder}")"""


def write_card(record: dict, folder: Path) -> None:
    """Write the model card of a fine-tuned model: what it is, how to load it, and its metrics."""
    import json

    from dinov3_hf.evaluation.cards import update_model_card

    settings, result = record["settings"], record["results"][0]
    base, method = settings["model"], settings["method"]
    is_id = is_hub_id(base)
    has_adapter = method in ("lora", "dora")
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    module = "dinov3_hf" if architecture.startswith("Dinov3") else "transformers"
    snippet = LOAD_ADAPTER if has_adapter else LOAD_MODEL
    if not has_adapter and module == "transformers":
        # Its backbone is found by name once the package is imported.
        snippet = "import dinov3_hf  # noqa: F401\n" + snippet
    text = CARD.format(
        library="peft" if has_adapter else "dinov3-hf",
        base=f"base_model: {base}\n" if is_id else "",
        task=result.task,
        title=f"{result.task.capitalize()} with DINOv3, {method}",
        summary=(
            f"`{architecture}` on {'random weights shaped as ' if settings['random_init'] else ''}"
            f"`{base if is_id else Path(base).name}`, "
            f"method `{method}`, {result.details['trainable_parameters']:,} trained parameters, by `dinov3 finetune`. "
            "No licence is set: it follows those of the base and of the training images."
        ),
        snippet=snippet.format(folder=folder.name, module=module, name=architecture),
    )
    (folder / "README.md").write_text(text)
    update_model_card(folder / "README.md", record)
