"""`dinov3 evaluate`: measure a checkpoint's frozen features beside its untrained twin and raw pixels."""

import argparse
from pathlib import Path

from ..evaluation.arguments import OPTIONS, TASKS, EvaluateArguments, option_help, read_config
from ..evaluation.results import format_classes
from ..evaluation.run import evaluate, join_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listing = "\n".join(f"  {task:<24}{text}" for task, text in TASKS.items())
    parser.epilog = f"tasks:\n{listing}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", help="YAML file of the same names; flags override it")
    for name, item in OPTIONS.items():
        text, kind = option_help(name), item.metadata["type"]
        flag = "--" + name.replace("_", "-")
        if name == "model":
            parser.add_argument("model", nargs="?", help=text)
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(
                flag, type=kind, nargs="+" if item.metadata["many"] else None, default=None, metavar="X", help=text
            )


def run(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name, None) is not None}
    settings = EvaluateArguments(**(read_config(arguments.config) | given))
    output = Path(settings.output_dir) / "results.json"
    if output.exists() and not settings.overwrite:
        raise FileExistsError(f"output_dir: {output} exists, accepted: another folder, or --overwrite")
    processes = join_processes()
    record = evaluate(settings, processes)
    if processes.get("rank", 0):
        return 0
    from dinov3_hf.evaluation.results import format_table, update_model_card, write_results

    pictures = write_results(record, output.parent)
    print(format_table(record["results"]))
    for result in record["results"]:
        print_remarks(result)
    card = Path(settings.model) / "README.md"
    if settings.update_card and card.is_file() and Path(__file__).parents[1] not in card.resolve().parents:
        update_model_card(card, record)
        print(f"model card: {card}")
    features = Path(settings.cache_dir or output.parent / "features")
    if features.is_dir():
        size = sum(file.stat().st_size for file in features.rglob("*") if file.is_file())
        print(f"features: {features} ({size / 1e6:.0f} MB; kept for further runs, delete it when done)")
    print(f"results: {output}" + (f", pictures: {', '.join(path.name for path in pictures)}" if pictures else ""))
    return 0


def print_remarks(result: dict) -> None:
    """Print what a reader of the table has to know: classes one by one, words not known, rows left out."""
    task, protocol = result["task"], result["protocol"]
    if task == "zero-shot-segmentation":
        print(format_classes(result))
    if protocol.get("unknown_words"):
        print(f"{task}: the text tower was never taught {', '.join(protocol['unknown_words'])}")
    if protocol.get("classes_not_in_train"):
        print(f"{task}: train lacks {', '.join(protocol['classes_not_in_train'])}: their test images count as missed")
    skipped = sum(result["skipped_images"].values())
    if skipped:
        print(f"{task}: {skipped} images could not be decoded and were left out")
    for reason, count in result.get("skipped_rows", {}).items():
        if count:
            print(f"{task}: {count} rows were left out: {reason}")
