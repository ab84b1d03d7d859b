"""Metrics in a model card: the Hub's metadata, and the table for readers that is made from it."""

import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from ..provenance import is_hub_id
from .result import Result
from .results import (
    INTERVAL,
    MODEL_AND_BASELINES,
    NOT_PARAMETERS,
    TABLE_HEAD,
    format_interval,
    format_value,
    markdown,
    metric_title,
)


TITLE = "## Evaluation"
DATE, IMAGES = "date", "images"


def metadata(result: Result, date: str) -> list[EvalResult]:
    """Return a result's metrics as the Hub's metadata, without those that have no finite value.

    The task is stored as the metric's configuration; baselines, parameters, number of images and date as its
    arguments.
    """
    source, test = result.data.get("source", ""), result.data.get("test", {})
    name = Path(source).name or "?"
    items = []
    for metric in result.metrics:
        value = metric.get("model")
        if value is None or not math.isfinite(value):
            continue
        parameters = {key: given for key, given in metric.items() if key not in NOT_PARAMETERS}
        baselines = {key: metric[key] for key in MODEL_AND_BASELINES[1:] if metric.get(key) is not None}
        interval = {INTERVAL: metric[INTERVAL]} if metric.get(INTERVAL) else {}
        items.append(
            EvalResult(
                task_type=result.hub_task,
                dataset_type=source if is_hub_id(source) else re.sub(r"[^a-z0-9]+", "-", name.lower()),
                dataset_name=name,
                dataset_split=test.get("split"),
                metric_type=re.sub(r"[^a-z0-9]+", "_", metric["metric"].lower()).strip("_"),
                metric_name=metric_title(metric),
                metric_config=result.task,
                metric_value=float(value),
                metric_args={**parameters, **baselines, **interval, IMAGES: test.get(IMAGES), DATE: date[:10]},
            )
        )
    return items


def update_model_card(path: Path, record: dict) -> None:
    """Add a record's metrics to a model card; they replace earlier values of the same task, metric and data."""
    text = path.read_text()
    # A card without metadata gets an empty block, for which the library need not warn.
    card = ModelCard(text if text.startswith("---\n") else f"---\n{{}}\n---\n\n{text}", ignore_metadata_errors=True)
    new = [item for result in record["results"] for item in metadata(result, record["date"])]
    again = {identity(item) for item in new}
    card.data.eval_results = [item for item in card.data.eval_results or [] if identity(item) not in again] + new
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    table = markdown([TABLE_HEAD, *(table_line(item) for item in card.data.eval_results if is_ours(item))])
    block = f"{TITLE}\n\n{table}\n"
    section = re.compile(rf"{TITLE}\n\n(?:\|.*(?:\n|$))*")
    if section.search(card.text):
        card.text = section.sub(lambda _: block, card.text, count=1)
    else:
        card.text = f"{card.text.rstrip()}\n\n{block}"
    path.write_text(str(card))


def identity(item: EvalResult) -> tuple:
    """Return the key that two measurements of the same metric on the same data share."""
    return item.metric_config, item.metric_name, item.dataset_name, item.dataset_split


def is_ours(item: EvalResult) -> bool:
    """Say whether `metadata` made this item; a card may hold metrics from other sources."""
    return DATE in (item.metric_args or {})


def table_line(item: EvalResult) -> tuple[str, ...]:
    """Return the table row of a metric."""
    about = item.metric_args
    where = f"{item.dataset_name} {item.dataset_split or ''} ({about.get(IMAGES, '?')} images)"
    model, *baselines = map(format_value, [item.metric_value, *(about.get(name) for name in MODEL_AND_BASELINES[1:])])
    return item.metric_config, item.metric_name, where, model, format_interval(about), *baselines, about[DATE]
