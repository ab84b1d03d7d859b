"""The account of a source in words."""

from collections import Counter
from typing import Any

from .facts import MAX_CLASSES, OTHER, most_common
from .rows import Split


def label_summary(split: Split, counts: Counter) -> dict[str, Any] | None:
    """Return the classes of a split and their rows; without classes where every row has a value of its own."""
    if split.label_column is None:
        return None
    unlabelled = counts.get(None, 0)
    values = {label: count for label, count in counts.items() if label is not None}
    answer: dict[str, Any] = {"column": split.label_column, "different_values": len(values), "unlabelled": unlabelled}
    if split.class_names is not None:
        values = dict.fromkeys(split.class_names, 0) | values
    elif OTHER in values:
        return answer | {"counts": None, "reason": f"more than {MAX_CLASSES:,} different values"}
    elif 1 < len(values) == sum(values.values()):
        return answer | {"counts": None, "reason": "every row has its own value"}
    return answer | {"counts": most_common(Counter(values))}


def account_lines(account: dict[str, Any]) -> list[str]:
    """Return the lines about one split, or about all."""
    lines = [f"skipped {count:,}: {reason}" for reason, count in account["skipped"].items()]
    if account["readable"]:
        bits = _counted(account["bits_per_channel"])
        lines.append(f"formats: {_counted(account['formats'])}; modes: {_counted(account['modes'])}; bits: {bits}")
        lines += [f"{side}: {_described(account[side])}" for side in ("width", "height")]
    ranges = [f"{low:g} to {high:g} ({mode})" for mode, (low, high) in account["stored_values"].items()]
    lines += [f"stored values: {', '.join(ranges)}"] if ranges else []
    if account["readable"]:
        mean, std = (", ".join(f"{value:.4f}" for value in account[name]) for name in ("mean", "std"))
        lines.append(f"mean {mean}; std {std} (RGB, 0 to 1)")
    odd = {
        "grey": "grey",
        "one_colour": "of one colour",
        "exif_rotated": "turned by EXIF",
        "several_frames": "with several frames, of which the first is read",
    }
    some = [f"{account[name]:,} {text}" for name, text in odd.items() if account[name]]
    return lines + ([f"among them: {', '.join(some)}"] if some else [])


def _counted(counts: dict[str, int]) -> str:
    """Return names and counts; without the count of the only one."""
    return ", ".join(f"{name} {count:,}" if len(counts) > 1 else name for name, count in counts.items())


def _described(values: dict[str, float]) -> str:
    """Return the spread of numbers in words."""
    if values["min"] == values["max"]:
        return f"{values['min']}"
    return f"{values['min']} to {values['max']}, median {values['median']:g}, most often {values['most_frequent']}"


def label_line(labels: dict[str, Any]) -> str:
    """Return the line about the classes of a split."""
    counts = labels["counts"]
    if counts is None:
        return f"column {labels['column']}: no classes: {labels['reason']}"
    least, most = min(counts.values(), default=0), max(counts.values(), default=0)
    unlabelled = f", {labels['unlabelled']:,} rows without one" if labels["unlabelled"] else ""
    rows = f"{least:,} rows" if least == most else f"{least:,} to {most:,} rows"
    return f"column {labels['column']}: {len(counts):,} classes of {rows} each{unlabelled}"


def duplicate_line(duplicates: dict[str, Any]) -> str:
    """Return the line about byte-identical images."""
    among = duplicates.get("only_among_the_first")
    within = [f"{count:,} repeated in {name}" for name, count in duplicates["repeated_within"].items() if count]
    both = [f"{count:,} in both {names}" for names, count in duplicates["in_both"].items() if count]
    text = ", ".join([*within, *both]) or "none"
    return f"byte-identical images: {text}" + (f" (only the first {among:,} images were compared)" if among else "")


def verdict(report: dict[str, Any]) -> str:
    """Return in one line what stands in the way of training on a source and of trusting its scores."""
    total, duplicates = report["total"], report["duplicates"]
    if not total["rows"]:
        return "there are no rows"
    skipped = total["rows"] - total["readable"]
    unclear = sum(count for reason, count in total["skipped"].items() if reason.startswith("value_range"))
    deep = sum(count for bits, count in total["bits_per_channel"].items() if int(bits) > 8)
    remarks = [f"{skipped:,} of {total['rows']:,} images cannot be read" if skipped else "every image can be read"]
    remarks += [f"of these {unclear:,} for want of a value_range"] if unclear else []
    remarks += [
        f"{count:,} in both {names}: scores on these are too high"
        for names, count in duplicates["in_both"].items()
        if count
    ]
    odd = {
        "repeated within a split": sum(duplicates["repeated_within"].values()),
        "with more than 8 bits a channel, of which 8 are kept": deep,
        "of one colour": total["one_colour"],
        "with several frames, of which the first is read": total["several_frames"],
    }
    remarks += [f"{count:,} {text}" for text, count in odd.items() if count]
    for name, split in report["splits"].items():
        empty = list(((split["labels"] or {}).get("counts") or {}).values()).count(0)
        remarks += [f"{name} lacks {empty} of its classes"] if empty else []
    return "; ".join(remarks)
