"""`dinov3 inspect`: read every image of a source, and say what they are before anything is trained on them."""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Failed, Refused
from ..recipe import (
    RECIPE_FILE,
    Recipe,
    add_recipe_flags,
    check_output,
    described,
    make_folder,
    recipe_from_flags,
    require,
    write_recipe,
)
from ..terminal import print_next


if TYPE_CHECKING:
    from ..data.inspection.rows import Split
    from ..data.inspection.run import Pass
    from ..data.sources.account import Account


REPORT, SHEET = "inspect.json", "contact_sheet.png"


@dataclass
class InspectArguments:
    """Which source is inspected, and where the report goes."""

    data: str | None = described(
        "scenes, scenes:crowded, an image folder, Parquet files, WebDataset tars (paths, patterns or URLs), or a hub "
        "data set id",
        None,
        positional=True,
    )
    split: str | None = described("split to inspect; null: every split of the source", None, common=True)
    image_column: str | None = described(
        "column that contains the images; null: the only image column", None, common=True
    )
    label_column: str | None = described(
        "column whose classes are counted; null: the only one of declared classes, or of whole numbers or texts",
        None,
        common=True,
    )
    max_images: int | None = described(
        "rows read of each split, from its start; null: all", None, at_least=1, common=True
    )
    num_images: int = described("number of rendered scenes a split (data: scenes only)", 1000, at_least=1)
    output_dir: str = described(
        "folder for inspect.json, the contact sheet and the lists of skipped and repeated images; the same command "
        "continues there if it was stopped",
        "outputs/inspect",
        common=True,
    )
    overwrite: bool = described("replace the inspection in output_dir", False, common=True)

    def validate(self) -> None:
        require(self.data is not None, "data", self.data, "images, as dinov3 pretrain reads them")
        check_output(self.output_dir)


@dataclass
class InspectRecipe(Recipe):
    """All fields of an inspection."""

    inspection: InspectArguments = field(default_factory=InspectArguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_flags(parser, InspectRecipe)


def run(arguments: argparse.Namespace) -> int:
    from ..data.inspection.rows import ALL_ROWS, open_splits
    from ..data.inspection.run import Pass
    from ..data.sources.account import describe_source

    recipe = recipe_from_flags(arguments, InspectRecipe)
    settings = recipe.inspection
    assert settings.data is not None  # refused by `validate`
    folder = Path(settings.output_dir)
    continues = check_folder(folder, recipe)
    account = describe_source(settings.data, settings.split or ALL_ROWS)
    splits, refused = open_splits(
        account, settings.split, settings.image_column, settings.label_column, settings.num_images
    )
    work = Pass(splits, make_folder(folder), settings.max_images)
    if continues and work.load():
        print(f"continues the inspection in {folder}, after {sum(part.rows for part in work.accounts):,} rows")
    else:
        (folder / REPORT).unlink(missing_ok=True)
        write_recipe(folder, recipe)
    print(*account.lines(), sep="\n")
    for columns, names in grouped((describe_columns(split), split.name) for split in splits).items():
        print(f"  {', '.join(names)}: {columns}")
    for name, reason in refused.items():
        print(f"  {name}: not read: {reason}")
    work.run()
    report = write_report(work, recipe, account, refused)
    print_report(report, folder)
    if not report["total"]["readable"]:
        raise Failed(
            f"data: none of {report['total']['rows']} rows of {settings.data} has a readable image; see {folder}"
        )
    print_next(next_command(settings, list(report["splits"])))
    return 0


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the names that share a text."""
    groups: dict[str, list[str]] = {}
    for text, name in pairs:
        groups.setdefault(text, []).append(name)
    return groups


def describe_columns(split: "Split") -> str:
    """Say which columns of a split are read as images and classes, and which are not read."""
    label = f"{'classes' if split.class_names is not None else 'values counted'} in {split.label_column}"
    label = label if split.label_column is not None else "no column read as classes (--label-column)"
    known = (split.image_column, split.label_column, "__key__", "__url__")
    others = [f"{name} ({kind})" for name, kind in split.columns.items() if name not in known]
    rest = f"; not inspected: {', '.join(others)}" if others else ""
    return f"images in column {split.image_column}, {label}{rest}"


def check_folder(folder: Path, recipe: InspectRecipe) -> bool:
    """Say whether a folder may hold a stopped inspection of this recipe; raises `Refused` if it holds another."""
    from ..recipe.yaml_text import read_mapping

    file, now = folder / RECIPE_FILE, recipe.as_flat_dict()
    if recipe.inspection.overwrite or not file.is_file():
        return False
    before = read_mapping(file, "output_dir")
    changed = [name for name in now if name not in ("overwrite", "output_dir") and before.get(name) != now[name]]
    if changed:
        differences = ", ".join(f"{name} (was {before.get(name)}, now {now[name]})" for name in changed)
        raise Refused(f"output_dir: {folder} holds another run: {differences}, accepted: another folder, --overwrite")
    if (folder / REPORT).exists():
        raise Refused(f"output_dir: {folder / REPORT} exists, accepted: another folder, --overwrite")
    return True


def write_report(work: "Pass", recipe: InspectRecipe, account: "Account", refused: dict[str, str]) -> dict[str, Any]:
    """Write the JSON, the contact sheet and the lists of a finished pass, and return what the JSON holds."""
    from ..data.inspection.facts import ImageSummary
    from ..data.inspection.report import label_summary
    from ..data.inspection.run import DUPLICATES_FILE, SKIPPED_FILE
    from ..provenance import versions
    from ..visualization.contact_sheet import draw_contact_sheet

    folder, total = work.folder, ImageSummary()
    for part in work.accounts:
        total.merge(part)
    splits = {
        split.name: {
            "image_column": split.image_column,
            "columns": split.columns,
            **part.summary(),
            "labels": label_summary(split, part.labels),
        }
        for split, part in zip(work.splits, work.accounts, strict=True)
    }
    duplicates = work.find_duplicates()
    if total.readable:
        draw_contact_sheet(work.tiles.chosen()).save(folder / SHEET)
    if not sum(total.skipped.values()):
        (folder / SKIPPED_FILE).unlink(missing_ok=True)
    files = [name for name in (SHEET, SKIPPED_FILE, DUPLICATES_FILE) if (folder / name).exists()]
    report = {
        "source": recipe.inspection.data,
        "kind": account.kind,
        "notes": account.notes,
        "skipped_files": account.skipped,
        "total": total.summary(),
        "splits": splits,
        "not_read": refused,
        "duplicates": duplicates,
        "files": files,
        "recipe": recipe.as_flat_dict(),
        "seconds": round(work.seconds, 3),
        "versions": versions(),
    }
    temporary = folder / f"{REPORT}.new"
    temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / REPORT)
    work.remove_state()
    return report


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print what a person wants to know first of what the JSON holds."""
    from ..data.inspection.report import account_lines, duplicate_line, label_line, verdict

    for name, account in [*report["splits"].items(), *([("total", report["total"])] * (len(report["splits"]) > 1))]:
        print(f"\n{name}: {account['rows']:,} rows, {account['readable']:,} readable images")
        for line in account_lines(account):
            print(f"  {line}")
        if account.get("labels"):
            print(f"  {label_line(account['labels'])}")
    print("\n" + duplicate_line(report["duplicates"]))
    print(f"written: {', '.join(str(folder / name) for name in [REPORT, *report['files']])}")
    print(f"verdict: {verdict(report)}")


def next_command(settings: InspectArguments, splits: list[str]) -> list[str]:
    """Return the command that pretrains on what was inspected."""
    assert settings.data is not None
    command = ["pretrain", "--config", "tiny_cpu", "--data", settings.data]
    split = settings.split or ("train" if {"train", "all"} & set(splits) else splits[0])
    command += ["--split", split] if split != "train" else []
    command += ["--image-column", settings.image_column] if settings.image_column is not None else []
    return [*command, "--output-dir", "outputs/mine"]
