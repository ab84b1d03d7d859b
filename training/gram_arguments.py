"""The fields of Gram anchoring, in one group that refuses what contradicts itself."""

from dataclasses import dataclass
from typing import Literal

from dinov3_hf.recipe import described, require


@dataclass
class GramArguments:
    """Gram anchoring: which earlier teacher holds the patch similarities in place, when and how much (section 4.2)."""

    gram_teacher: Literal["none", "checkpoint", "ema_copy", "ema"] = described(
        "none: no anchoring; checkpoint: the weights of gram_checkpoint; ema_copy: a copy of the EMA teacher taken at "
        "gram_start_step; ema: the EMA teacher itself",
        "none",
        common=True,
    )
    gram_checkpoint: str | None = described(
        "model folder or hub id of the Gram teacher (gram_teacher: checkpoint)", None
    )
    gram_weight: float = described("weight of the Gram loss", 2.0, at_least=0)
    gram_start_step: int = described("first step with the Gram loss", 0, at_least=0)
    gram_ramp_steps: int = described("steps over which its weight rises from 0, by a cosine", 0, at_least=0)
    gram_first_update: int = described(
        "from this step on the Gram teacher may be refreshed from the EMA teacher", 0, at_least=0
    )
    gram_update_every: int | None = described("steps between two refreshes; null: never", None, at_least=1)
    gram_max_updates: int | None = described("refreshes at most; null: no limit", None, at_least=1)
    gram_crop_size: int | None = described(
        "side of the Gram teacher's own undistorted crops; null: it sees the global crops as they are",
        None,
        at_least=1,
    )
    gram_normalize: bool = described("compare cosines instead of products", True)
    gram_per_image: bool = described("compare patches within an image, instead of within the local batch", True)
    gram_clamp: Literal["both", "teacher"] | None = described(
        "set negative similarities of both sides, or of the teacher, to 0; null: neither", None
    )

    def validate(self) -> None:
        kind = self.gram_teacher
        require(
            (self.gram_checkpoint is not None) == (kind == "checkpoint"),
            "gram_checkpoint",
            self.gram_checkpoint,
            "a model folder or hub id with gram_teacher: checkpoint, else null",
        )
        if kind == "none":
            for name in ("gram_update_every", "gram_crop_size"):
                require(getattr(self, name) is None, name, getattr(self, name), "null while gram_teacher is none")
        if kind == "ema":
            why = "null with gram_teacher: ema, whose tokens of the global crops are at hand and always new"
            for name in ("gram_update_every", "gram_crop_size"):
                require(getattr(self, name) is None, name, getattr(self, name), why)
        if self.gram_update_every is None:
            why = "null while gram_update_every is null: nothing is refreshed"
            require(self.gram_max_updates is None, "gram_max_updates", self.gram_max_updates, why)
        elif self.gram_first_update < self.gram_start_step:
            why = f"at least gram_start_step ({self.gram_start_step}): before it nothing is anchored"
            require(False, "gram_first_update", self.gram_first_update, why)
