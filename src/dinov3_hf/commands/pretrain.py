"""`dinov3 pretrain`: train a DINOv3 on a stream of images."""

import argparse
from pathlib import Path

from ..errors import Refused
from ..terminal import evaluation_of, print_next, resumed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dinov3_hf.recipe import add_recipe_flags
    from dinov3_hf.training.arguments import PretrainRecipe

    parser.add_argument(
        "--plan", action="store_true", help="print the memory, FLOPs and energy a run needs, and exit without training"
    )
    parser.add_argument("--processes", metavar="N", help="plan for this many processes [default 1]")
    parser.add_argument(
        "--device-memory",
        metavar="GIB",
        help="plan for devices with this much memory [default: that of this machine's]",
    )
    add_recipe_flags(parser, PretrainRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.recipe import read_number, recipe_from_flags
    from dinov3_hf.training.arguments import PretrainRecipe

    if arguments.plan:
        from dinov3_hf.training.planning.plan import format_plan, make_plan

        processes = read_number("processes", arguments.processes or "1", int, at_least=1)
        memory = arguments.device_memory and read_number("device_memory", arguments.device_memory, float, above=0)
        print(format_plan(make_plan(recipe_from_flags(arguments, PretrainRecipe), processes, memory)))
        return 0
    for name in ("processes", "device_memory"):
        if getattr(arguments, name) is not None:
            raise Refused(f"{name}: got {getattr(arguments, name)}, accepted: only with --plan")

    from dinov3_hf.training.pretrain import pretrain

    recipe = recipe_from_flags(arguments, PretrainRecipe)
    result, output = pretrain(recipe), Path(recipe.run.output_dir)
    if result.finished:
        model = output / "model"
        print_next(evaluation_of(model, output), ["demo", "dense_features", "--model", str(model)])
    else:
        print_next(resumed("pretrain", arguments.given))
    return result.exit_code
