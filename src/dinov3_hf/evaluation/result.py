"""What a protocol returns; results.json, the printed table and a model card's metadata are all made from it."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Result:
    """The measures of one task on one model, and all that has to be said with them.

    Attributes:
        task: name of the task, as "knn" or "layers of knn".
        protocol: what was done, JSON-ready: two results compare where these agree.
        measures: one dictionary a measure: "measure" is its name, then its parameters, "lower_is_better" where that is so,
            and a value for "model", "random_init", "raw_pixels" and "chance" as far as they were measured.
        skipped_images: images that could not be decoded, by split.
        skipped_rows: other rows that were not measured, by reason.
        details: further tables, JSON-ready, by name: "per_class", "per_object", "per_group".
        pictures: images, or lists of frames, by title; not for JSON.
        hits: whether each row was right, bool [N] for each contestant, and "rows", their numbers; not for JSON.
        data: the source that was measured, and which of its rows.
        hub_task: the Hub's name for what is measured, for the metadata of model cards; not for JSON.
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
        """Return what results.json holds of it, without pictures; details stand next to the other fields."""
        names = [item.name for item in fields(self) if item.name not in ("details", "pictures", "hits", "hub_task")]
        return {name: getattr(self, name) for name in names} | self.details
