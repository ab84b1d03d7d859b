"""Write the results of an evaluation (results.json, results.md, pictures, a printed table), and compare them."""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import Refused
from .result import Result


BASELINES = ("random_init", "raw_pixels", "chance")
MODEL_AND_BASELINES = ("model", *BASELINES)
# Keys of a metric that are not its parameters.
INTERVAL, INTERVAL_TITLE = "interval", "95% interval"
NOT_PARAMETERS = ("metric", "lower_is_better", INTERVAL, *MODEL_AND_BASELINES)
TABLE_HEAD = ("task", "metric", "data", "model", INTERVAL_TITLE, "random init", "raw pixels", "chance", "date")
# Metrics are compared with the best value they can have to this.
TOLERANCE = 1e-9
FRAME_MILLISECONDS = 120


def metric_title(metric: dict) -> str:
    """Return a metric's name with its parameters, as "top-1, k=10"."""
    parameters = [f"{name}={value}" for name, value in metric.items() if name not in NOT_PARAMETERS]
    return ", ".join([metric["metric"], *parameters])


def format_table(results: Sequence[Result]) -> str:
    """Lay out the metrics of several tasks as aligned lines, one per metric, each with its verdict."""
    columns = [
        name for name in MODEL_AND_BASELINES if any(name in metric for result in results for metric in result.metrics)
    ]
    if any(metric.get(INTERVAL) for result in results for metric in result.metrics):
        columns.insert(columns.index("model") + 1 if "model" in columns else 0, INTERVAL)
    titles = {INTERVAL: INTERVAL_TITLE}
    lines = [["", *(titles.get(name, name.replace("_", " ")) for name in columns), "verdict"]]
    for result in results:
        for metric in result.metrics:
            title = f"{result.task} {metric_title(metric)}"
            values = [
                format_interval(metric) if name == INTERVAL else format_value(metric.get(name)) for name in columns
            ]
            lines.append([title, *values, verdict(metric)])
    return align(lines, left=(0, len(columns) + 1))


def verdict(metric: dict) -> str:
    """Say by how much the model is better or worse than the best of its baselines; "" without one.

    The two are about equal if that baseline is inside the model's 95% interval. The interval is that of the test
    images: how much of a difference is the luck of the training, seeds tell.
    """
    value = metric.get("model")
    others = {name: metric[name] for name in BASELINES if _is_number(metric.get(name))}
    if not others or not _is_number(value):
        return ""
    sign = -1 if metric.get("lower_is_better") else 1
    name, best = max(others.items(), key=lambda item: sign * item[1])
    ahead = round(sign * (value - best), 4)
    interval = _ends(metric)
    if ahead and interval and interval[0] <= best <= interval[1]:
        return f"about equal to {name.replace('_', ' ')}"
    relation = "better than" if ahead > 0 else "worse than" if ahead < 0 else "equal to"
    return f"{relation} {name.replace('_', ' ')}" + (f" by {abs(ahead):.4f}" if ahead else "")


def summary(results: Sequence[Result]) -> str:
    """Count the metrics in which the model is better than all of its baselines, as one sentence."""
    verdicts = [text for result in results for metric in result.metrics if (text := verdict(metric))]
    if not verdicts:
        return ""
    better, about = (sum(text.startswith(start) for text in verdicts) for start in ("better", "about"))
    also = f", about equal to the best of them in {about}" if about else ""
    return f"the model is better than all baselines in {better} of {len(verdicts)} metrics{also}"


def no_metrics(metrics: Sequence[dict]) -> dict[str, str]:
    """Return the titles of metrics in which an answer without looking is perfect, each with the reason.

    No model can be better than it there.
    """
    reasons = {}
    for metric in metrics:
        perfect = 0.0 if metric.get("lower_is_better") else 1.0
        chance = metric.get("chance")
        if chance is not None and _is_number(chance) and abs(chance - perfect) <= TOLERANCE:
            reasons[metric_title(metric)] = (
                f"an answer without looking at the images scores {perfect:g} on these rows, as on rows of one class"
            )
    return reasons


def drop_no_metrics(result: Result) -> Result:
    """Move the metrics of `no_metrics` from a result to its "no_metrics"; raise `Refused` if none is left."""
    reasons = no_metrics(result.metrics)
    if not reasons:
        return result
    result.metrics = [metric for metric in result.metrics if metric_title(metric) not in reasons]
    if not result.metrics:
        title, reason = next(iter(reasons.items()))
        raise Refused(f"{result.task}: {title}: {reason}, accepted: test rows with at least two different answers")
    result.details["no_metrics"] = reasons
    return result


def _ends(metric: dict) -> tuple[float, float] | None:
    """Return the ends of a metric's interval, None if it has none."""
    ends = metric.get(INTERVAL)
    if ends is None:
        return None
    low, high = ends
    return (low, high) if _is_number(low) and _is_number(high) else None


def format_interval(metric: dict) -> str:
    """Format the model's interval as "[0.370, 0.456]"; an empty string for a metric without one."""
    ends = _ends(metric)
    return "" if ends is None else f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def format_value(value: float | None) -> str:
    """Format a number with four decimals; None becomes an empty string."""
    return "" if value is None else f"{value:.4f}"


def align(lines: list[list[str]], left: Sequence[int] = (0,)) -> str:
    """Pad cells to columns: those of `left` are aligned left, the others right."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    aligned = [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lay out lines of cells as a Markdown table; the first line is the head."""
    head, *rows = lines
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |"
        for line in (head, ("---",) * len(head), *rows)
    )


def replace_table(page: Path, script: str, table: str) -> None:
    """Replace the table between the marks `<!-- table: SCRIPT -->` and `<!-- end of table -->` of a page.

    Raises ValueError for a page without these marks.
    """
    start, end = f"<!-- table: {script} -->", "<!-- end of table -->"
    text, count = re.subn(
        f"{re.escape(start)}.*?{end}", lambda _: f"{start}\n{table.strip()}\n{end}", page.read_text(), flags=re.S
    )
    if not count:
        raise ValueError(f"docs: got {page} without {start}, accepted: a page with it and {end}")
    page.write_text(text)


def table_lines(record: dict) -> list[tuple[str, ...]]:
    """Return the rows of a record for the table of results.md."""
    lines = []
    for result in record["results"]:
        data = result.data
        test = data.get("test", {})
        where = (
            f"{Path(data.get('source', '')).name or '?'} {test.get('split', '')} ({test.get('images', '?')} images)"
        )
        for metric in result.metrics:
            values = [format_value(metric.get(name)) for name in MODEL_AND_BASELINES]
            values.insert(1, format_interval(metric))
            lines.append((result.task, metric_title(metric), where, *values, record["date"][:10]))
    return lines


def write_results(record: dict, folder: Path) -> list[Path]:
    """Write results.json, results.md and the pictures of a record; return the paths of the pictures.

    In results.json each result lists the file names of its pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, results = [], []
    for number, result in enumerate(record["results"]):
        twice = [other.task for other in record["results"][:number]].count(result.task)
        names = {}
        for name, picture in result.pictures.items():
            words = f"{result.task} {name}" + (f" {twice + 1}" if twice else "")
            stem = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")
            paths.append(save_picture(picture, folder / stem))
            names[name] = paths[-1].name
        results.append(result.as_dict() | {"pictures": names})
    # results.json is written last: its presence means that the evaluation is complete.
    table = markdown([TABLE_HEAD, *table_lines(record)])
    images = "".join(f"\n![{path.stem}]({path.name})\n" for path in paths)
    (folder / "results.md").write_text(f"# {record['model']['path']}\n\n{table}\n{images}")
    text = json.dumps(not_finite_to_none({**record, "results": results}), indent=2, allow_nan=False)
    (folder / "results.json").write_text(text + "\n")
    return paths


def not_finite_to_none(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot represent, by None in nested dictionaries and lists."""
    if isinstance(value, dict):
        return {key: not_finite_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [not_finite_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_picture(picture: Image.Image | Sequence[Image.Image], stem: Path) -> Path:
    """Save an image as PNG, or a list of images as an animated GIF; return the file's path."""
    if isinstance(picture, Image.Image):
        path = stem.with_name(f"{stem.name}.png")
        picture.save(path, optimize=True)
    else:
        path = stem.with_name(f"{stem.name}.gif")
        first, *others = picture
        first.save(path, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)
    return path


def read_results(path: str) -> dict:
    """Read a results.json, given as the file or its folder; raises `Refused` if there is none or it is invalid."""
    # These return False for a name that is too long; the methods of Path raise.
    file = Path(path) / "results.json" if os.path.isdir(path) else Path(path)
    if not os.path.isfile(file):
        raise Refused(f"results: nothing at {str(file)!r}, accepted: a results.json or the folder of one")
    try:
        record = json.loads(file.read_text())
        for result in record["results"]:
            known = isinstance(result["task"], str) and isinstance(result.get("protocol", {}), dict)
            if not known or not all(isinstance(metric["metric"], str) for metric in result["metrics"]):
                raise TypeError
            for metric in result["metrics"]:
                [format_value(metric.get(name)) for name in MODEL_AND_BASELINES]
                format_interval(metric)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"results: {file} is no evaluation, accepted: what dinov3 evaluate writes") from None
    return record


def compare_results(records: dict[str, dict]) -> tuple[list[list[str]], list[str]]:
    """Compare the metrics of several records: return the lines of a table, the first its head, and remarks.

    A line is a metric of one task on one data set. The columns are the records' models, then their baselines: one
    column for a baseline on which all records agree, else one per record. Remarks name the differences between the
    protocols of a task on a data set.
    """
    # By task, metric and source; what differs between protocols does so by task and source.
    cells: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    protocols: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for name, record in records.items():
        for result in record["results"]:
            data = result.get("data", {})
            source = Path(data.get("source", "")).name
            for metric in result["metrics"]:
                key = (result["task"], metric_title(metric), source)
                cells.setdefault(key, {})[name] = metric
                protocols.setdefault((result["task"], source), {})[name] = _protocol(result)
    baselines = [c for c in MODEL_AND_BASELINES[1:] if any(c in m for line in cells.values() for m in line.values())]
    columns = [(name, "model") for name in records]
    for baseline in baselines:
        agree = all(len({m.get(baseline) for m in line.values()}) == 1 for line in cells.values())
        columns += [("", baseline)] if agree else [(name, baseline) for name in records]
    head = [""] + [
        (name if encoder == "model" else encoder.replace("_", " ") + (f", {name}" if name else ""))
        for name, encoder in columns
    ]
    lines = [head]
    for key in cells:
        values = []
        for name, encoder in columns:
            metric = cells[key].get(name) if name else next(iter(cells[key].values()))
            cell = format_value((metric or {}).get(encoder)) or "-"
            interval = format_interval(metric) if metric and encoder == "model" else ""
            values.append(f"{cell} {interval}".strip())
        lines.append([f"{key[0]} {key[1]} ({key[2]})", *values])
    return lines, [remark for key, by_record in protocols.items() for remark in _differences(key, by_record)]


def _protocol(result: dict) -> dict:
    data = result.get("data", {})
    rows = {f"{name} rows": data[name].get("fingerprint") for name in ("train", "test") if name in data}
    return {name: json.dumps(value) for name, value in {**result.get("protocol", {}), **rows}.items()}


def _differences(key: tuple[str, str], by_record: dict[str, dict]) -> list[str]:
    names = list(dict.fromkeys(name for protocol in by_record.values() for name in protocol))
    remarks = []
    for name in names:
        values = {record: protocol.get(name) for record, protocol in by_record.items()}
        if len(set(values.values())) > 1:
            listed = "; ".join(f"{record}: {(value or 'none')[:60]}" for record, value in values.items())
            remarks.append(f"{key[0]} ({key[1]}) differs in {name}: {listed}")
    return remarks


def format_classes(result: Result) -> str:
    """Lay out the IoU of each class as aligned lines."""
    lines = [["IoU", "pixels", "model", "chance"]]
    for row in result.details["per_class"]:
        lines.append([row["class"], str(row["pixels"]), f"{row['model']:.4f}", f"{row['chance']:.4f}"])
    return align(lines)
