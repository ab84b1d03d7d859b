"""`dinov3 evaluate`: measure a checkpoint's frozen features beside its untrained twin and raw pixels.

Flags are in `evaluate_arguments.py`, rows in `evaluate_data.py`, calls of protocols in `evaluate_tasks.py`, tasks with text in
`evaluate_text.py`.
"""

import argparse
import datetime
import os
from pathlib import Path

from dinov3_hf.provenance import describe_weights, versions

from .evaluate_arguments import OPTIONS, TASKS, EvaluateArguments, option_help, read_config
from .evaluate_data import is_rendered
from .evaluate_text import evaluate_text


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


def join_processes() -> dict:
    """Return rank, number and barrier of the processes that a launcher started together; nothing for one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    import torch
    from accelerate import PartialState

    # Unless it is told so, Accelerate takes processes without a GPU for strangers.
    state = PartialState(cpu=not torch.cuda.is_available())
    return {"rank": state.process_index, "num_processes": state.num_processes, "wait": state.wait_for_everyone}


def evaluate(settings: EvaluateArguments, processes: dict | None = None) -> dict:
    """Run the tasks and return the record that results.json holds; `processes` are the arguments of `FeatureStore`."""
    if settings.has_text:
        results, provenance = evaluate_text(settings)
    else:
        results, provenance = evaluate_vision(settings, processes or {})
    return {
        "results": results,
        "model": provenance,
        "settings": vars(settings),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def evaluate_vision(settings: EvaluateArguments, processes: dict) -> tuple[list[dict], dict]:
    """Run the tasks of a vision model; returns their results and where the model came from."""
    from dinov3_hf.data.views import check_image_size
    from dinov3_hf.evaluation.bench import Bench
    from dinov3_hf.evaluation.feature_store import FeatureStore

    from .evaluate_tasks import measure, needed_splits

    splits = needed_splits(settings)
    model, provenance, preprocessing = load_model(settings)
    check_image_size(preprocessing.image_size, model.config.patch_size)
    by_layer = sorted({"layers", "outliers"} & set(settings.task))
    if by_layer and not hasattr(model.config, "num_hidden_layers"):
        raise ValueError(f"task: got {by_layer[0]}, accepted: another one; the stages of a ConvNeXt share no width")
    store = FeatureStore(settings.cache_dir or Path(settings.output_dir) / "features", **processes)
    is_main = store.rank == 0
    bench = Bench(model, preprocessing, store, settings.batch_size, settings.seed, settings.controls, is_main)
    results = []
    for task in dict.fromkeys(settings.task):
        results += measure(task, bench, splits, settings)
    return results, provenance


def load_model(settings: EvaluateArguments):
    """Return the model in the asked type, where it came from, and the preprocessing its processor asks for."""
    import torch

    from dinov3_hf import Dinov3ForPreTraining
    from dinov3_hf.checkpoints import load_model as load_any
    from dinov3_hf.checkpoints.processors import image_side, processor_for
    from dinov3_hf.data.views import Preprocessing
    from dinov3_hf.pipelines.windows import Windowed

    name = settings.model
    model = load_any(name)
    model = model.dinov3 if isinstance(model, Dinov3ForPreTraining) else model
    provenance, processor = describe_weights(name, model), processor_for(name, model.config.image_size)
    image_size = settings.image_size or image_side(processor)
    resize_size = settings.resize_size or (image_size if is_rendered(settings.data) else round(image_size * 256 / 224))
    statistics = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    model = model.to(device, getattr(torch, settings.dtype)).eval()
    if settings.window is not None:
        model = Windowed(model, settings.window)
    return model, provenance, Preprocessing(image_size, resize_size, **statistics)


def format_classes(result: dict) -> str:
    """Lay out the IoU of each class as aligned lines."""
    from dinov3_hf.evaluation.results import align

    lines = [["IoU", "pixels", "model", "chance"]]
    for row in result["per_class"]:
        lines.append([row["class"], str(row["pixels"]), f"{row['model']:.4f}", f"{row['chance']:.4f}"])
    return align(lines)
