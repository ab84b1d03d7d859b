"""`dinov3 quickstart`: pretrain a tiny ViT on rendered scenes, measure it beside its controls, write a report."""

import argparse
import time
from pathlib import Path


RECIPE = "tiny_cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default=RECIPE, help=f"recipe: a name from the package or a YAML file [default {RECIPE}]")
    parser.add_argument("--output-dir", default="outputs/quickstart", help="folder of the run and of report.html [default %(default)s]")
    parser.add_argument("--steps", type=int, help="optimizer steps [default: the recipe's, about five minutes on two cores]")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, data order, crops and masks [default %(default)s]")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output-dir")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that output-dir holds and start anew")
    parser.add_argument("--num-train", type=int, default=2000, help="labelled scenes in the k-NN bank [default %(default)s]")
    parser.add_argument("--num-test", type=int, default=500, help="scenes measured [default %(default)s]")


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.training.arguments import build_recipe
    from dinov3_hf.training.pretrain import pretrain

    names = ("output_dir", "steps", "seed", "resume", "overwrite")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    recipe = build_recipe(arguments.config, **given)
    start = time.perf_counter()
    if not pretrain(recipe).finished:
        return 130
    seconds = time.perf_counter() - start
    print(f"trained in {seconds:.0f} s; measuring frozen features ...")
    report = measure_and_report(recipe, seconds, arguments.num_train, arguments.num_test)
    print(f"report: {report}")
    return 0
