"""The fields of Gram anchoring, and the combinations of them that are refused."""

from dataclasses import dataclass
from typing import Literal

from dinov3_hf.recipe import described, require


@dataclass
class GramArguments:
    """Gram anchoring: which earlier teacher the patch similarities are kept close to, when, and how strongly.

    DINOv3, section 4.2.
    """

    gram_teacher: Literal["none", "checkpoint", "ema_copy", "ema"] = described(
        "Gram teacher; none: no Gram anchoring; checkpoint: the weights of gram_checkpoint; ema_copy: a copy of the "
        "EMA teacher taken at gram_start_step; ema: the current EMA teacher",
        "none",
        common=True,
    )
    gram_checkpoint: str | None = described(
        "model folder or hub id of the Gram teacher, for gram_teacher: checkpoint", None
    )
    gram_weight: float = described("weight of the Gram loss", 2.0, at_least=0)
    gram_start_step: int = described("first step with the Gram loss", 0, at_least=0)
    gram_ramp_steps: int = described(
        "steps over which the weight of the Gram loss rises from 0 along a cosine", 0, at_least=0
    )
    gram_first_update: int = described(
        "first step at which the Gram teacher may be refreshed from the EMA teacher", 0, at_least=0
    )
    gram_update_every: int | None = described(
        "steps between two refreshes of the Gram teacher; null: never refreshed", None, at_least=1
    )
    gram_max_updates: int | None = described("maximum number of refreshes; null: no limit", None, at_least=1)
    gram_crop_size: int | None = described(
        "side in pixels of separate Gram teacher crops without colour augmentation; null: use the global crops",
        None,
        at_least=1,
    )
    gram_normalize: bool = described("compare cosine similarities instead of dot products", True)
    gram_per_image: bool = described("compare patches within each image instead of within the whole local batch", True)
    gram_clamp: Literal["both", "teacher"] | None = described(
        "set negative similarities to 0, of student and teacher or of the teacher only; null: keep them", None
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
            why = "null with gram_teacher: ema, which needs no refreshes or separate crops"
            for name in ("gram_update_every", "gram_crop_size"):
                require(getattr(self, name) is None, name, getattr(self, name), why)
        if self.gram_update_every is None:
            why = "null while gram_update_every is null: the Gram teacher is not refreshed"
            require(self.gram_max_updates is None, "gram_max_updates", self.gram_max_updates, why)
        elif self.gram_first_update < self.gram_start_step:
            why = f"at least gram_start_step ({self.gram_start_step}), where Gram anchoring begins"
            require(False, "gram_first_update", self.gram_first_update, why)
