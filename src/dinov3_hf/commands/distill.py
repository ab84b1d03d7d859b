"""`dinov3 distill`: train one or several small students from one frozen teacher."""

import argparse
from pathlib import Path

from ..errors import Refused
from ..terminal import evaluation_of, print_next, resumed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dinov3_hf.recipe import add_recipe_flags
    from dinov3_hf.training.distill_arguments import DistillRecipe

    parser.add_argument(
        "--plan",
        action="store_true",
        help="time a few steps on this machine, print how many processes to give each student so that all steps take "
        "equally long, and exit without training",
    )
    parser.add_argument("--processes", metavar="N", help="plan for this many processes [default 1]")
    add_recipe_flags(parser, DistillRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.recipe import read_number, recipe_from_flags
    from dinov3_hf.training.distill_arguments import DistillRecipe

    recipe = recipe_from_flags(arguments, DistillRecipe)
    if arguments.plan:
        from dinov3_hf.training.planning.distill_plan import format_plan, make_plan

        print(format_plan(make_plan(recipe, read_number("processes", arguments.processes or "1", int, at_least=1))))
        return 0
    if arguments.processes is not None:
        raise Refused(f"processes: got {arguments.processes}, accepted: only with --plan")

    from dinov3_hf.training.distill import distill

    result, output = distill(recipe), Path(recipe.run.output_dir)
    if result.finished:
        print_next(*(evaluation_of(model, output / model.name) for model in sorted((output / "model").iterdir())))
    else:
        print_next(resumed("distill", arguments.given))
    return result.exit_code
