"""Where images come from: the fields shared by pretraining, distillation and text alignment."""

from dataclasses import dataclass

from dinov3_hf.data.mixing import homogeneous_error
from dinov3_hf.recipe import described, require


@dataclass
class SourceArguments:
    """Where the images come from."""

    data: list[str] = described(
        "training data, one or several sources: scenes, scenes:crowded, an image folder, Parquet files, WebDataset "
        "tars (paths, patterns or URLs), or a hub data set id",
        ["scenes"],
        common=True,
    )
    data_weights: list[float] = described(
        "weight of each source in mixed steps; empty: all equal; that of a source with a share in data_homogeneous is "
        "not used",
        [],
        above=0,
    )
    data_homogeneous: list[float] = described(
        "for each source, the share of the steps whose images all come from it; one with a share above 0 is in no "
        "mixed step (DINOv3: 0.1 for ImageNet-1k, 0 for the others); empty: all steps are mixed",
        [],
        at_least=0,
        at_most=1,
    )
    split: str = described("split to train on", "train", common=True)
    image_column: str | None = described(
        "column that contains the images; null: the only image column", None, common=True
    )
    streaming: bool = described("read the data as a stream instead of downloading and preparing it first", True)
    num_images: int = described("number of rendered scenes in the training set (data: scenes only)", 50000, at_least=1)
    shuffle_block: int = described("size of the shuffle buffer in rows, per worker", 4096, at_least=1)
    max_bad_images: float = described(
        "stop the run if more than this share of the images cannot be used", 0.1, at_least=0, at_most=1
    )
    num_workers: int = described(
        "worker processes that decode and augment images, per training process", 1, at_least=0, common=True
    )

    def validate(self) -> None:
        require(len(self.data) >= 1, "data", self.data, "at least one source")
        weights = self.data_weights
        good = not weights or len(weights) == len(self.data)
        require(good, "data_weights", weights, f"empty, or a number above 0 for each of the {len(self.data)} sources")
        wrong = homogeneous_error(self.data_homogeneous, len(self.data))
        require(wrong is None, "data_homogeneous", self.data_homogeneous, wrong or "")
