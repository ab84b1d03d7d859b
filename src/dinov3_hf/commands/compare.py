"""`dinov3 compare`: the figures of several evaluations in one table."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="*", help="results.json files of dinov3 evaluate, or their folders")
    parser.add_argument("--names", nargs="+", help="what to call them, in order [default: their folders]")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--output-dir", help="also write the table to compare.md in this folder")


def run(arguments: argparse.Namespace) -> int:
    from dinov3_hf.evaluation.results import align, compare_results, markdown, read_results

    if not arguments.results:
        raise ValueError("results: missing, accepted: results.json files of dinov3 evaluate, or their folders")
    names = arguments.names or short_names(arguments.results)
    if len(names) != len(arguments.results) or len(set(names)) != len(names):
        raise ValueError(f"names: got {', '.join(names)}, accepted: {len(arguments.results)} different names")
    records = {name: read_results(path) for name, path in zip(names, arguments.results, strict=True)}
    lines, remarks = compare_results(records)
    print(markdown(lines) if arguments.markdown else align(lines))
    for remark in remarks:
        print(f"note: {remark}")
    if arguments.output_dir:
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.md").write_text(
            "\n".join([markdown(lines), "", *(f"- {remark}" for remark in remarks), ""])
        )
        print(f"table: {folder / 'compare.md'}")
    return 0


def short_names(paths: list[str]) -> list[str]:
    """Return the last parts of the folders, as many as make them differ."""
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in paths]
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
