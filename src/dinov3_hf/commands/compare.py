"""`dinov3 compare`: the metrics of several evaluations in one table."""

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..recipe import Recipe, add_recipe_flags, check_output, described, make_folder, recipe_from_flags, require


@dataclass
class CompareArguments:
    """Which results are compared, and how the table is shown."""

    results: list[str] = described(
        "results.json files written by dinov3 evaluate or finetune, or the folders that hold them", [], positional=True
    )
    names: list[str] = described(
        "names of the columns, in the order of the results; empty: the names of their folders", [], common=True
    )
    markdown: bool = described("print a Markdown table", False, common=True)
    output_dir: str | None = described("also write the table to compare.md in this folder", None, common=True)

    def validate(self) -> None:
        require(
            bool(self.results),
            "results",
            self.results,
            "results.json files of dinov3 evaluate or finetune, or their folders",
        )
        good = not self.names or len(set(self.names)) == len(self.names) == len(self.results)
        require(good, "names", self.names, f"{len(self.results)} different names")
        if self.output_dir is not None:
            check_output(self.output_dir)


@dataclass
class CompareRecipe(Recipe):
    """All fields of a comparison."""

    comparison: CompareArguments = field(default_factory=CompareArguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_flags(parser, CompareRecipe)


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.evaluation.results import align, compare_results, markdown, read_results

    settings = recipe_from_flags(arguments, CompareRecipe).comparison
    names = settings.names or short_names(settings.results)
    twice = "files of different folders, or --names"
    require(len(set(names)) == len(names), "results", settings.results, twice)
    records = {name: read_results(path) for name, path in zip(names, settings.results, strict=True)}
    lines, remarks = compare_results(records)
    print(markdown(lines) if settings.markdown else align(lines))
    for remark in remarks:
        print(f"note: {remark}")
    if settings.output_dir is not None:
        file = make_folder(settings.output_dir) / "compare.md"
        file.write_text("\n".join([markdown(lines), "", *(f"- {remark}" for remark in remarks), ""]))
        print(f"table: {file}")
    return 0


def short_names(paths: list[str]) -> list[str]:
    """Return the shortest endings of the folder paths that are all different."""
    folders = [Path(path) if os.path.isdir(path) else Path(path).parent for path in paths]
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
