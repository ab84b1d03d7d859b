"""Can each task of `dinov3 evaluate` tell a trained network from a randomly initialised one, on real images?

Runs every task on small public data sets (folders of Parquet files in --data, named as below) with several seeds and
prints one table; --docs FILE replaces the table in that file. Finished runs in --output-dir are reused.

    python benchmarks/evaluation_table.py --data FOLDER --docs docs/evaluation.md
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets, load_dataset
from PIL import Image as PilImage
from PIL import ImageFilter

from dinov3_hf import tiny_checkpoint
from dinov3_hf.evaluation.results import markdown, metric_title, replace_table, write_results
from dinov3_hf.evaluation.run import evaluate
from dinov3_hf.evaluation.tasks import EvaluateRecipe
from dinov3_hf.recipe import build_recipe


ALSO = ("top-1 (corrupted)", "top-1 difference (corrupted - test)")
CAMVID = {"data": "camvid", "mask_column": "label", "ignore_index": 11, "image_size": 128, "resize_size": 128}
# By name of a run: the task and its settings, the metric to show, and the number of seeds.
RUNS: dict[str, tuple[dict[str, Any], str, int]] = {
    "knn, cifar10": ({"task": "knn", "data": "cifar10", "num_train": 5000, "num_test": 2000, "k": [10]}, "top-1", 3),
    "knn, uc_merced": (
        {"task": "knn", "data": "uc_merced", "image_size": 128, "resize_size": 128, "k": [10]},
        "top-1",
        3,
    ),
    "linear, uc_merced": ({"task": "linear", "data": "uc_merced", "image_size": 128, "resize_size": 128}, "top-1", 3),
    "linear-sgd, cifar10": (
        {"task": "linear-sgd", "data": "cifar10", "ood_data": ["corrupted"], "steps": 1000},
        "top-1",
        3,
    ),
    "fairness by brightness, cifar10": (
        {"task": "fairness", "data": "brightness", "group_column": "brightness", "k": [10]},
        "gap between the best and the worst group",
        3,
    ),
    "patch-knn, camvid": ({"task": "patch-knn", **CAMVID, "k": [10]}, "mIoU", 3),
    "segmentation, camvid": ({"task": "segmentation", **CAMVID, "steps": 1000}, "mIoU", 2),
    "depth, rgbd7scenes": ({"task": "depth", "data": "rgbd7scenes", "image_size": 128, "steps": 1000}, "RMSE (m)", 2),
    "correspondence, pf_willow": (
        {
            "task": "correspondence",
            "data": "pf_willow",
            "pairs_split": "pairs",
            "image_size": 224,
            "thresholds": [0.1],
        },
        "PCK",
        2,
    ),
    "tracking, davis2016_small": ({"task": "tracking", "data": "davis2016_small", "image_size": 128}, "J&F", 2),
    "discovery, davis2016_small": (
        {"task": "discovery", "data": "davis_stills", "image_size": 128, "mask_column": "mask"},
        "CorLoc",
        3,
    ),
    "retrieval, vpr_corridor": (
        {
            "task": "retrieval",
            "data": "vpr_corridor",
            "train_split": "gallery",
            "test_split": "query",
            "positives_column": "positives",
            "image_size": 96,
            "resize_size": 96,
        },
        "mAP",
        3,
    ),
    "video, davis2016_small": (
        {"task": "video", "data": "davis_clips", "image_size": 48, "resize_size": 48, "steps": 150},
        "top-1",
        1,
    ),
    "layers of patch-knn, camvid": ({"task": "layers", "of": ["patch-knn"], **CAMVID, "k": [10]}, "mIoU", 1),
    "resolution of patch-knn, camvid": (
        {
            "task": "resolution",
            "of": ["patch-knn"],
            **CAMVID,
            "k": [10],
            "sizes": [48, 96, 192],
            "num_train": 100,
            "num_test": 60,
        },
        "mIoU",
        1,
    ),
    "outliers, camvid": (
        {"task": "outliers", "data": "camvid", "image_size": 128, "resize_size": 128, "num_test": 100},
        "variance in the first principal component",
        1,
    ),
}


def rows_of(data: Path, name: str, split: str) -> Dataset:
    return load_dataset(
        "parquet", data_files=[str(file) for file in (data / name).glob(f"{split}-*.parquet")], split="train"
    )


def save(rows: Dataset, folder: Path, split: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / f"{split}-0.parquet")


def prepare(data: Path, folder: Path) -> None:
    """Write the derived data sets: groups by brightness, corrupted images, stills and clips of videos."""
    if (folder / "done").exists():
        return
    for split in ("train", "test"):
        rows = rows_of(data, "cifar10", split).select(range(4000))
        light = np.array([np.asarray(image.convert("L")).mean() for image in rows["image"]])
        thirds = np.searchsorted(np.quantile(light, [1 / 3, 2 / 3]), light)
        names = [("dark", "medium", "bright")[third] for third in thirds]
        save(rows.add_column("brightness", names), folder / "brightness", split)
    rows = rows_of(data, "cifar10", "test").select(range(300))
    noise = np.random.default_rng(0)
    corruptions = {
        "gaussian_noise": lambda image: PilImage.fromarray(
            (np.asarray(image) + noise.normal(0, 25, (*image.size[::-1], 3))).clip(0, 255).astype(np.uint8)
        ),
        "defocus_blur": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        "contrast": lambda image: PilImage.blend(PilImage.new("RGB", image.size, (128, 128, 128)), image, 0.4),
    }
    parts = []
    for name, corrupt in corruptions.items():
        images = [corrupt(image.convert("RGB")) for image in rows["image"]]
        features = Features({"image": Image(), "label": rows.features["label"], "corruption": Value("string")})
        parts.append(
            Dataset.from_dict(
                {"image": images, "label": rows["label"], "corruption": [name] * len(images)}, features=features
            )
        )
    save(concatenate_datasets(parts), folder / "corrupted", "test")
    davis = rows_of(data, "davis2016_small", "test")
    save(davis.select(range(0, len(davis), 4)), folder / "davis_stills", "test")
    # The class of a clip is its video, one of four: train clips are from its first half, test clips from the second.
    names = [str(value) for value in davis.unique("sequence")]
    clips: dict[str, list[tuple[int, str, int]]] = {"train": [], "test": []}
    for row, (sequence, frame) in enumerate(zip(davis["sequence"], davis["frame"], strict=True)):
        clips["train" if frame < 20 else "test"].append((row, str(sequence), frame))
    for split, chosen in clips.items():
        part = davis.select([row for row, _, _ in chosen]).select_columns(["image"])
        # Clips of five frames.
        part = part.add_column("sequence", [f"{name} {frame // 5}" for _, name, frame in chosen])
        part = part.add_column("frame", [frame % 5 for _, _, frame in chosen])
        part = part.add_column("label", [names.index(name) for _, name, _ in chosen])
        save(part.cast_column("label", ClassLabel(names=names)), folder / "davis_clips", split)
    (folder / "done").touch()


def run(name: str, settings: dict, seed: int, arguments: argparse.Namespace) -> dict:
    """Return the record of a run; a finished run is read from its folder."""
    folder = arguments.output_dir / re.sub(r"[^a-z0-9]+", "-", name) / f"seed{seed}"
    if not (folder / "results.json").exists():
        prepared = arguments.output_dir / "data"
        place = {source: str((prepared if (prepared / source).exists() else arguments.data) / source)
                 for source in (settings["data"], *settings.get("ood_data", ()))}  # fmt: skip
        settings = settings | {"data": place[settings["data"]]}
        if "ood_data" in settings:
            settings["ood_data"] = [place[source] for source in settings["ood_data"]]
        task = settings.pop("task")
        record = evaluate(
            build_recipe(
                EvaluateRecipe,
                model=arguments.model,
                task=[task],
                seed=seed,
                output_dir=str(folder),
                cache_dir=str(arguments.output_dir / "features"),
                **settings,
            )
        )
        write_results(record, folder)
    return json.loads((folder / "results.json").read_text())


def cell(given: list[float | None]) -> str:
    """Format a mean, and its range over seeds if the values differ."""
    values = [value for value in given if value is not None]
    if not values:
        return ""
    low, high = min(values), max(values)
    spread = f" ({low:.3f} to {high:.3f})" if high - low >= 0.0005 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def verdict(lines: list[dict]) -> str:
    """Say whether every seed of the model is better, or worse, than every seed of the randomly initialised network."""
    models, random_init = ([line[name] for line in lines] for name in ("model", "random_init"))
    if lines[0].get("lower_is_better"):
        models, random_init = [-x for x in models], [-x for x in random_init]
    if min(models) > max(random_init):
        return "better"
    return "worse" if max(models) < min(random_init) else "not told apart"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=tiny_checkpoint())
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/evaluation_table"))
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="RUN")
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    prepare(arguments.data, arguments.output_dir / "data")
    table = [("task, data", "metric", "model", "random init", "raw pixels", "chance", "trained is")]
    for name in arguments.only:
        settings, shown, seeds = RUNS[name]
        records = [run(name, dict(settings), seed, arguments) for seed in range(seeds)]
        by_title: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            for metric in record["results"][0]["metrics"]:
                # Discovery also reports every tau, which the table omits.
                if metric["metric"] in (shown, *ALSO) and "tau" not in metric:
                    by_title.setdefault(metric_title(metric), []).append(metric)
        for title, lines in by_title.items():
            cells = [
                cell([line.get(who) for line in lines]) for who in ("model", "random_init", "raw_pixels", "chance")
            ]
            # The metrics of outliers are neither better high nor low.
            table.append((name, title, *cells, "" if name.startswith("outliers") else verdict(lines)))
    text = markdown(table)
    print(text)
    if arguments.docs:
        replace_table(arguments.docs, "benchmarks/evaluation_table.py", text)


if __name__ == "__main__":
    main()
