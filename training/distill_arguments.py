"""The fields of a distillation recipe that pretraining does not have."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dinov3_hf.recipe import described, require

from .arguments import CropArguments, DataArguments, ObjectiveArguments, OptimizationArguments, RunArguments, RunRecipe


@dataclass
class StudentSpec:
    """One entry of `students`: its name, a named size or folder, and configuration fields that override the size."""

    name: str
    source: str
    overrides: dict[str, Any]

    @property
    def has_weights(self) -> bool:
        """Whether the student starts from the weights in its folder."""
        return os.path.isfile(Path(self.source) / "model.safetensors")


def parse_student(text: str) -> StudentSpec:
    """Parse `[NAME=]SIZE[:FIELD=VALUE,...]` or `[NAME=]FOLDER`; raises `Refused` for any other text."""
    from dinov3_hf.recipe.yaml_text import NotYaml, parse

    matched = re.fullmatch(r"(?:([\w-]+)=)?(.+)", text)
    name, source = matched.groups() if matched else (None, "")
    overrides: Any = {}
    if not os.path.exists(source) and ":" in source:
        source, _, fields = source.partition(":")
        try:
            overrides = parse("{" + fields.replace("=", ": ") + "}")
        except NotYaml:
            overrides = None
        good = isinstance(overrides, dict) and all(key and value is not None for key, value in overrides.items())
        require(good, "students", text, "a size with changed fields as in vits16:num_hidden_layers=6,hidden_size=192")
    name = name or Path(source).name
    require(
        bool(re.fullmatch(r"[\w-]+", name)),
        "students",
        text,
        "a name of letters, digits, _ and - in front (NAME=...)",
    )
    return StudentSpec(name, source, overrides)


@dataclass
class DistillArguments:
    """A frozen teacher and the students that learn from it (DINOv3, section 5.2)."""

    teacher: str | None = described(
        "weights of the teacher: a model folder (saved by this package or by transformers), a hub id, or a .pth or "
        ".safetensors file in Meta's layout; null: the small model bundled with the package",
        None,
        common=True,
    )
    students: list[str] = described(
        "students to train, each a named size (vits16 to vit7b16, convnext_tiny to convnext_large), a size with "
        "changed fields (vits16:num_hidden_layers=6), or a folder with a config.json and optional initial "
        "weights; prefix NAME= to name a student",
        ["vits16"],
        common=True,
    )
    mode: Literal["full", "headless"] | None = described(
        "full: the targets are the teacher's prototype assignments; headless: the targets are its features, which the "
        "student predicts through a linear layer; null: full if the teacher has heads, otherwise headless",
        None,
        common=True,
    )
    feature_loss: Literal["cosine", "smooth_l1"] = described(
        "loss of headless mode: 1 - cosine similarity to the teacher's features, or smooth L1 to their layer norm",
        "cosine",
    )
    group_sizes: list[int] = described(
        "number of processes for each student, in order, adding up to all processes; empty: every process trains all "
        "students",
        [],
        at_least=1,
        common=True,
    )
    drop_path_rate: float = described(
        "stochastic depth of the students: share of the batch for which each residual branch is skipped",
        0.0,
        at_least=0,
        below=1,
    )
    pos_embed_shift: float | None = described(
        "RoPE augmentation of ViTs: shift coordinates by up to this much", None, at_least=0
    )
    pos_embed_jitter: float | None = described(
        "RoPE augmentation of ViTs: scale each axis by up to this factor", None, at_least=1
    )
    pos_embed_rescale: float | None = described(
        "RoPE augmentation of ViTs: scale both axes by up to this factor", None, at_least=1
    )
    dino_head_hidden_size: int | None = described(
        "hidden width of the students' image head; null: the teacher's", None, at_least=1
    )
    dino_head_bottleneck_size: int | None = described(
        "bottleneck width of the students' image head; null: the teacher's", None, at_least=1
    )
    ibot_head_hidden_size: int | None = described(
        "hidden width of the students' patch head; null: the teacher's", None, at_least=1
    )
    ibot_head_bottleneck_size: int | None = described(
        "bottleneck width of the students' patch head; null: the teacher's", None, at_least=1
    )
    head_initializer_range: float = described(
        "standard deviation of the initial weights of the students' heads", 0.02, above=0
    )

    def validate(self) -> None:
        names = [spec.name for spec in self.specs()]
        require(len(names) >= 1, "students", self.students, "at least one")
        good = len(set(names)) == len(names)
        require(good, "students", self.students, f"different names (got {', '.join(names)}; set names with NAME=...)")
        sizes = self.group_sizes
        good = not sizes or len(sizes) == len(names)
        require(good, "group_sizes", sizes, f"empty, or one for each of the {len(names)} students")

    def specs(self) -> list[StudentSpec]:
        return [parse_student(text) for text in self.students]


@dataclass
class DistillRunArguments(RunArguments):
    """Where a run writes, how often, and how it is resumed."""

    output_dir: str = described(
        "output folder for the recipe, metrics, checkpoints and one exported model per student",
        "outputs/distill",
        common=True,
    )


@dataclass
class DistillRecipe(RunRecipe):
    """All fields of a distillation recipe, in the groups defined above."""

    distillation: DistillArguments = field(default_factory=DistillArguments)
    data: DataArguments = field(default_factory=DataArguments)
    crops: CropArguments = field(default_factory=CropArguments)
    objective: ObjectiveArguments = field(default_factory=ObjectiveArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    run: DistillRunArguments = field(default_factory=DistillRunArguments)
