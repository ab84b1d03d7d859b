"""The result of a protocol; results.json, the printed table and a model card's metadata are made from it."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Result:
    """The metrics of one task on one model, with everything needed to interpret them.

    Attributes:
        task: name of the task, as "knn" or "layers of knn".
        protocol: how it was measured, JSON-ready; two results are comparable if their protocols agree.
        metrics: one dictionary per metric: its name as "metric", its parameters, "lower_is_better" if so, and its
            values as "model", "random_init", "raw_pixels" and "chance", as far as they were measured; the 95%
            interval of the model's value, over test images, as "interval": [low, high]. "chance" is the better of
            random and of the best constant answer.
        skipped_images: images that could not be decoded, by split.
        skipped_rows: other rows that were not measured, by reason.
        details: further tables, JSON-ready, by name: "per_class", "per_object", "per_group".
        pictures: images, or lists of frames, by title; not for JSON.
        hits: for each encoder, whether each row was predicted correctly (bool [N]), and the row numbers as "rows"; not
            for JSON.
        data: the source of the images, and which of its rows were used.
        hub_task: the Hub's name of the task, for the metadata of model cards; not for JSON.
    """

    task: str
    protocol: dict[str, Any]
    metrics: list[dict[str, Any]]
    skipped_images: dict[str, int] = field(default_factory=dict)
    skipped_rows: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    hits: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    hub_task: str = "image-feature-extraction"

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of results.json, without pictures; `details` are merged into the other fields."""
        names = [item.name for item in fields(self) if item.name not in ("details", "pictures", "hits", "hub_task")]
        return {name: getattr(self, name) for name in names} | self.details
