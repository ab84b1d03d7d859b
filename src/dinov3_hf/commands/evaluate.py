"""`dinov3 evaluate`: evaluate a checkpoint's frozen features, with random init and raw pixels as baselines."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refused
from ..evaluation.arguments import OutputArguments, WhatArguments
from ..evaluation.tasks import TASKS, EvaluateRecipe
from ..recipe import add_recipe_flags, check_output, recipe_from_flags
from ..terminal import print_next


if TYPE_CHECKING:
    from ..evaluation.result import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listing = "\n".join(f"  {task.name:<24}{task.help}" for task in TASKS.values())
    parser.epilog = f"tasks:\n{listing}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_recipe_flags(parser, EvaluateRecipe)


def run(arguments: argparse.Namespace) -> int:
    from ..evaluation.cards import update_model_card
    from ..evaluation.loading import features_folder
    from ..evaluation.results import format_table, summary, write_results
    from ..evaluation.run import evaluate, join_processes

    recipe = recipe_from_flags(arguments, EvaluateRecipe)
    settings = recipe.of(OutputArguments)
    output = Path(settings.output_dir) / "results.json"
    check_output(output.parent)
    if output.exists() and not settings.overwrite:
        raise Refused(f"output_dir: {output} exists, accepted: another folder, or --overwrite")
    check_output(features_folder(recipe), "cache_dir")
    processes = join_processes()
    record = evaluate(recipe, processes)
    if processes.get("rank", 0):
        return 0
    pictures = write_results(record, output.parent)
    print(format_table(record["results"]))
    for result in record["results"]:
        print_remarks(result)
    model = recipe.of(WhatArguments).model
    assert model is not None  # refused by `recipe_from_flags`
    card = Path(model) / "README.md"
    if settings.update_card and card.is_file() and Path(__file__).parents[1] not in card.resolve().parents:
        update_model_card(card, record)
        print(f"model card: {card}")
    features = features_folder(recipe)
    if features.is_dir():
        size = sum(file.stat().st_size for file in features.rglob("*") if file.is_file())
        print(f"features: {features} ({size / 1e6:.0f} MB; kept for later runs; delete the folder when done)")
    print(f"results: {output}" + (f", pictures: {', '.join(path.name for path in pictures)}" if pictures else ""))
    if verdict := summary(record["results"]):
        print(f"verdict: {verdict}")
    print_next(["demo", "open_vocabulary_segmentation" if recipe.has_text else "dense_features", "--model", model])
    return 0


def print_remarks(result: "Result") -> None:
    """Print what the table does not show: per-class IoU, words the text tower does not know, skipped rows."""
    from ..evaluation.results import format_classes

    task, protocol = result.task, result.protocol
    if task == "zero-shot-segmentation":
        print(format_classes(result))
    if protocol.get("unknown_words"):
        print(f"{task}: the text tower was never taught {', '.join(protocol['unknown_words'])}")
    if protocol.get("classes_not_in_train"):
        print(f"{task}: train lacks {', '.join(protocol['classes_not_in_train'])}: their test images count as missed")
    for title, reason in result.details.get("no_metrics", {}).items():
        print(f"{task}: {title} is no metric here: {reason}")
    skipped = sum(result.skipped_images.values())
    if skipped:
        print(f"{task}: {skipped} images could not be decoded and were skipped")
    for reason, count in result.skipped_rows.items():
        if count:
            print(f"{task}: {count} rows were skipped: {reason}")
