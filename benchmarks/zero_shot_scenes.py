"""How good is a text tower on unseen rendered scenes? Classification, retrieval and segmentation against chance.

The background threshold is chosen on scenes of the train split. The split "compositional" contains only combinations
of class, colour and material that never occur in train.

    python benchmarks/zero_shot_scenes.py                       # the bundled checkpoint
    python benchmarks/zero_shot_scenes.py outputs/tiny_text/model
"""

import argparse
from typing import Any

from datasets import Dataset

from dinov3_hf import DinoTxtModel, DinoTxtProcessor, tiny_checkpoint
from dinov3_hf.data.scene_rendering import SCENE_CLASSES
from dinov3_hf.data.scenes import load_scenes
from dinov3_hf.evaluation.image_text_retrieval import evaluate_retrieval
from dinov3_hf.evaluation.zero_shot import evaluate_zero_shot
from dinov3_hf.evaluation.zero_shot_segmentation import choose_background_threshold, evaluate_zero_shot_segmentation


GALLERY = 100
TEMPLATES = ["{}", "a {}"]


def distinct(rows: Dataset, count: int) -> Dataset:
    """Return the first `count` rows with different captions."""
    seen: set[str] = set()
    keep: list[int] = []
    for index, caption in enumerate(rows["caption"]):
        if caption not in seen and len(keep) < count:
            seen.add(caption)
            keep.append(index)
    return rows.select(keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=tiny_checkpoint("text"))
    parser.add_argument("--num-test", type=int, default=500)
    arguments = parser.parse_args()
    model, processor = (kind.from_pretrained(arguments.model) for kind in (DinoTxtModel, DinoTxtProcessor))
    model.eval()
    classes, names = list(SCENE_CLASSES), ["background", *SCENE_CLASSES]
    quiet: dict[str, Any] = {"progress": False}
    windows: dict[str, Any] = {"scales": (1.0, 2.0, 3.0), "whole_windows": True}
    known = load_scenes("train", 100, subset="crowded")
    threshold = choose_background_threshold(model, processor, known, names, TEMPLATES, **windows)
    print(f"background threshold: {threshold}\n\n| split | metric | model | chance |\n|---|---|---|---|")
    for split in ("test", "compositional"):
        single = load_scenes(split, arguments.num_test)
        crowded = load_scenes(split, arguments.num_test, subset="crowded")
        masks: dict[str, Any] = {"background": 0, "background_threshold": threshold}
        results = [
            evaluate_zero_shot(model, processor, single, classes, TEMPLATES, **quiet),
            evaluate_retrieval(model, processor, distinct(single, GALLERY), **quiet),
            evaluate_zero_shot_segmentation(model, processor, crowded, names, TEMPLATES, **masks, **windows, **quiet),
        ]
        for result in results:
            for metric in result.metrics:
                row = f"{result.task} {metric['metric']} | {metric['model']:.3f} | {metric['chance']:.3f}"
                print(f"| {split} | {row} |")


if __name__ == "__main__":
    main()
