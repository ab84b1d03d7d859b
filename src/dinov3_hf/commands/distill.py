"""`dinov3 distill`: train small students from one fixed teacher."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dinov3_hf.recipe import add_recipe_flags
    from dinov3_hf.training.distill_arguments import DistillRecipe

    parser.add_argument(
        "--plan",
        action="store_true",
        help="time a few steps here, print group sizes with which all students step together, and train nothing",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="plan for this many processes [default 1]")
    add_recipe_flags(parser, DistillRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.recipe import recipe_from_flags
    from dinov3_hf.training.distill_arguments import DistillRecipe

    recipe = recipe_from_flags(arguments, DistillRecipe)
    if arguments.plan:
        from dinov3_hf.training.planning.distill_plan import format_plan, make_plan

        print(format_plan(make_plan(recipe, 1 if arguments.processes is None else arguments.processes)))
        return 0
    if arguments.processes is not None:
        raise ValueError(f"processes: got {arguments.processes}, accepted: only with --plan")

    from dinov3_hf.training.distill import distill

    return 0 if distill(recipe).finished else 130
