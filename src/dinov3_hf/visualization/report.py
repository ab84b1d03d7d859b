"""The report of a run as one HTML file that loads nothing from other places."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image


NAMES = {"model": "trained", "random_init": "random init", "raw_pixels": "raw pixels", "chance": "chance"}
CHART_WIDTH, CHART_HEIGHT = 560, 260
MARGINS = {"left": 52, "right": 14, "top": 12, "bottom": 40}


class Evaluated(Protocol):
    """The part of an evaluation's `Result` that a report shows (this folder does not import `evaluation`)."""

    task: str
    protocol: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass
class Curve:
    """Series of (x, y) points drawn in one chart; points whose y is not finite are not drawn."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float | None]]]
    x_label: str = "step"
    log_y: bool = False


@dataclass
class Comparison:
    """One metric (0..1, higher is better) of the trained model, which comes first, and of its baselines.

    `interval` is the 95% interval of the trained model's value over the test images.
    """

    title: str
    values: Mapping[str, float]
    caption: str = ""
    interval: tuple[float, float] | None = None


@dataclass
class Pictures:
    """Rows of uint8 images [h,w,3], one image for each of `columns`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[np.ndarray]]
    caption: str = ""


def compare(result: Evaluated, title: str | None = None) -> list[Comparison]:
    """Turn the `Result` of an evaluation into comparisons, one per metric."""
    titles = {
        "knn": "k-NN on images",
        "patch-knn": "k-NN on patches",
        "zero-shot": "zero-shot classification",
        "zero-shot-segmentation": "zero-shot segmentation",
    }
    task, protocol = title or titles[result.task], result.protocol
    caption = f"{protocol['num_test']} test images, classified by the names of the classes"
    if "num_train" in protocol:
        caption = f"{protocol['num_test']} test images, {protocol['num_train']} train images to search for neighbours"
    return [
        Comparison(
            f"{task}{f' (k={k})' if (k := metric.get('k')) else ''}: {metric['metric']}",
            {NAMES[name]: metric[name] for name in NAMES if name in metric},
            caption,
            _interval(metric),
        )
        for metric in result.metrics
    ]


def _interval(metric: dict) -> tuple[float, float] | None:
    ends = metric.get("interval")
    return (ends[0], ends[1]) if ends else None


def verdict(comparison: Comparison) -> str:
    """Return a sentence that compares the model with each of its baselines, better or worse.

    A baseline inside the model's interval is about equal to it.
    """
    (_, value), *others = comparison.values.items()
    low, high = comparison.interval or (value, value)
    stands = []
    for name, other in others:
        relation = "above" if value > other else "below" if value < other else "equal to"
        if value != other and low <= other <= high:
            relation = "about equal to"
        times = f", {value / other:.2f} times" if other > 0 else ""
        stands.append(f"{relation} {name} ({other:.3f}{times})")
    listed = " and ".join(filter(None, [", ".join(stands[:-1]), stands[-1] if stands else ""]))
    interval = f" ({low:.3f} to {high:.3f})" if comparison.interval else ""
    return f"{comparison.title} is {value:.3f}{interval}{', ' if listed else ''}{listed}."


def line_chart(curve: Curve) -> str:
    """Draw a curve as inline SVG with the colours of the page's style sheet."""
    points = {
        name: [(x, y) for x, y in series if y is not None and math.isfinite(y) and (y > 0 or not curve.log_y)]
        for name, series in curve.series.items()
    }
    points = {name: series for name, series in points.items() if series}
    if not points:
        return '<p class="caption">no points yet</p>'
    xs = [x for series in points.values() for x, _ in series]
    ys = [y for series in points.values() for _, y in series]
    x_ticks, y_ticks = (
        _ticks(min(xs), max(xs)),
        _log_ticks(min(ys), max(ys)) if curve.log_y else _ticks(min(ys), max(ys)),
    )
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(ys + y_ticks), max(ys + y_ticks)
    scale = math.log10 if curve.log_y else float

    def place(x: float, y: float) -> tuple[float, float]:
        width = CHART_WIDTH - MARGINS["left"] - MARGINS["right"]
        height = CHART_HEIGHT - MARGINS["top"] - MARGINS["bottom"]
        share = (scale(y) - scale(y_low)) / ((scale(y_high) - scale(y_low)) or 1)
        return MARGINS["left"] + width * (x - x_low) / (x_high - x_low), MARGINS["top"] + height * (1 - share)

    left, right, bottom = MARGINS["left"], CHART_WIDTH - MARGINS["right"], CHART_HEIGHT - MARGINS["bottom"]
    parts = [f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{escape(curve.title)}">']
    for tick in y_ticks:
        y = place(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x = place(tick, y_low)[0]
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:,.6g}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{CHART_HEIGHT - 4}" text-anchor="middle">{escape(curve.x_label)}</text>'
    )
    for index, series in enumerate(points.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in series))
        parts.append(f'<polyline class="series s{index % 5}" points="{path}"/>')
    parts.append("</svg>")
    if len(points) > 1:
        names = (f'<span><i class="s{index % 5}"></i>{escape(name)}</span>' for index, name in enumerate(points))
        parts.append(f'<div class="legend">{"".join(names)}</div>')
    return "".join(parts)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers for an axis, the first at or below `low`, the last at or above `high`."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= count)
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten that span the range from `low` to `high`."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    first = max(index for index, tick in enumerate(ticks) if tick <= low)
    last = min(index for index, tick in enumerate(ticks) if tick >= high)
    return ticks[first : last + 1]


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _comparison(comparison: Comparison) -> str:
    first = next(iter(comparison.values.values()))
    top = max(*comparison.values.values(), 1e-9)
    lines = []
    for index, (name, value) in enumerate(comparison.values.items()):
        ratio = "" if index == 0 else f"{first / value:.2f}×" if value > 0 else "–"
        bar = f'<div class="bar"><div style="width:{100 * max(value, 0) / top:.1f}%"></div></div>'
        style = ' class="first"' if index == 0 else ""
        lines.append(f"<tr{style}><th>{escape(name)}</th><td>{bar}</td><td>{value:.3f}</td><td>{ratio}</td></tr>")
    head = "<tr><th></th><th></th><th>value</th><th>trained / this</th></tr>"
    texts = [comparison.caption] if comparison.caption else []
    if comparison.interval:
        texts.append("95% interval of trained: {:.3f} to {:.3f}".format(*comparison.interval))
    caption = f'<p class="caption">{escape("; ".join(texts))}</p>' if texts else ""
    return f'<div class="card"><h3>{escape(comparison.title)}</h3><table>{head}{"".join(lines)}</table>{caption}</div>'


def _pictures(pictures: Pictures) -> str:
    names = "".join(f"<span>{escape(name)}</span>" for name in pictures.columns)
    cells = []
    for row in pictures.rows:
        images = "".join(
            f'<img src="{_png(image)}" alt="{escape(name)}">'
            for name, image in zip(pictures.columns, row, strict=True)
        )
        cells.append(f'<div class="row" style="--n:{len(pictures.columns)}">{names}{images}</div>')
    caption = f'<p class="caption">{escape(pictures.caption)}</p>' if pictures.caption else ""
    return f'<h2>{escape(pictures.title)}</h2>{caption}<div class="pictures">{"".join(cells)}</div>'


def _note(title: str, note: str | Mapping) -> str:
    if isinstance(note, str):
        return f"<h2>{escape(title)}</h2><pre>{escape(note)}</pre>"
    items = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>" for key, value in note.items()
    )
    return f"<details><summary>{escape(title)}</summary><dl>{items}</dl></details>"


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: str,
    curves: Sequence[Curve] = (),
    tables: Sequence[Comparison] = (),
    pictures: Sequence[Pictures] = (),
    notes: Mapping[str, str | Mapping] | None = None,
) -> Path:
    """Write a self-contained HTML page and return its path.

    `summary` is the paragraph below the title. A note that is a string is shown verbatim (as a command to copy), one
    that is a mapping as a list of settings, folded at first.
    """
    body = [f'<header><h1>{escape(title)}</h1><p class="summary">{escape(summary)}</p></header>']
    if tables:
        body.append(
            '<h2>Evaluation of the frozen features</h2><div class="cards">'
            + "".join(map(_comparison, tables))
            + "</div>"
        )
    body += map(_pictures, pictures)
    if curves:
        charts = (f'<div class="card"><h3>{escape(curve.title)}</h3>{line_chart(curve)}</div>' for curve in curves)
        body.append('<h2>Training</h2><div class="cards">' + "".join(charts) + "</div>")
    body += (_note(*item) for item in (notes or {}).items())
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style>'
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


STYLE = """
:root{--ink:#1b1f24;--soft:#5b6570;--line:#dfe3e8;--page:#f6f7f9;--card:#fff;--track:#eceff3;
--s0:#2563eb;--s1:#d9660b;--s2:#0b8f6a;--s3:#8b3fd6;--s4:#c22f5b}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa4b0;--line:#30363d;--page:#111418;--card:#1a1e24;
--track:#2a3038;--s0:#6ea3ff;--s1:#f79a4b;--s2:#3fc79c;--s3:#bd8bff;--s4:#f27a9d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 10px;letter-spacing:-.01em}
h2{font-size:20px;margin:40px 0 12px}
h3{font-size:15px;margin:0 0 10px}
.summary{font-size:18px;margin:0;max-width:78ch}
.caption{color:var(--soft);font-size:13.5px;margin:8px 0 0;max-width:90ch}
h2+.caption{margin:-6px 0 14px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;min-width:0}
table{width:100%;border-collapse:collapse;font-size:14.5px;font-variant-numeric:tabular-nums}
th{font-weight:400;text-align:left;padding:6px 10px 6px 0;white-space:nowrap}
td{padding:6px 0 6px 10px;text-align:right;white-space:nowrap}
td:nth-child(2){width:100%;padding-left:0}
tr:first-child th{color:var(--soft);font-size:12.5px;text-align:right;padding:0 0 4px 10px}
tr.first th,tr.first td{font-weight:650}
.bar{background:var(--track);border-radius:4px;height:12px;overflow:hidden;min-width:40px}
.bar div{background:var(--soft);height:100%;opacity:.55}
tr.first .bar div{background:var(--s0);opacity:1}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12.5px}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
.series{fill:none;stroke-width:2;stroke-linejoin:round;stroke:currentColor}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.s4{color:var(--s4)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13.5px;margin:8px 0 0;padding-left:8px}
.legend i{display:inline-block;width:16px;height:3px;border-radius:2px;background:currentColor;
margin-right:7px;vertical-align:middle}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:16px}
.row{display:grid;grid-template-columns:repeat(var(--n),1fr);gap:4px 6px;background:var(--card);
border:1px solid var(--line);border-radius:10px;padding:10px 12px 12px}
.row span{color:var(--soft);font-size:12.5px}
.row img{width:100%;aspect-ratio:1;object-fit:cover;border-radius:5px;image-rendering:pixelated}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px;margin:0;overflow-x:auto;
font:13.5px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
details{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 18px;margin-top:16px}
h2+details,pre+details{margin-top:28px}
summary{cursor:pointer;font-weight:600}
dl{margin:12px 0 4px;display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:4px 28px;
font-size:13.5px}
dl div{display:flex;justify-content:space-between;gap:12px;border-bottom:1px solid var(--line);padding:3px 0}
dt{color:var(--soft);overflow-wrap:anywhere}dd{margin:0;text-align:right;overflow-wrap:anywhere}
@media (max-width:560px){main{padding:24px 14px 48px}h1{font-size:24px}.summary{font-size:16.5px}.card{padding:14px}
.bar{min-width:24px}table{font-size:13.5px}}
"""
