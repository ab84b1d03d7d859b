"""Does every dense head of transformers work on a pretrained backbone of this package?

Builds each head at a tiny size on one backbone and checks that it receives the backbone's features, that gradients of
its loss on rendered scenes (of the sum of its outputs if transformers has no loss) reach the patch embedding, and that
a saved model gives equal outputs after loading. Prints one Markdown table; --docs FILE replaces the table in that
file.

    python benchmarks/heads_table.py --docs docs/heads.md
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_convert
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from dinov3_hf import Dinov3Backbone, Dinov3Config
from dinov3_hf.data.boxes import boxes_of_masks
from dinov3_hf.data.masks import read_mask
from dinov3_hf.data.pixels import decode_image
from dinov3_hf.data.scenes import SCENE_CLASSES, load_scenes
from dinov3_hf.evaluation.results import markdown, replace_table
from dinov3_hf.finetuning.heads import DENSE_HEADS, build_head, mask_targets


IMAGE_SIZE = 64
_DETR = {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 12, "dropout": 0.0}
_DETR |= {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_DEPTH = {"fusion_hidden_size": 32, "neck_hidden_sizes": [8, 16, 24, 32]}
_MASKS = {"num_queries": 12, "train_num_points": 256}
# Settings that make each head small. (Widths of 32, because some norms have 32 groups.)
TINY: dict[str, dict[str, Any]] = {
    "upernet": {"hidden_size": 32, "auxiliary_channels": 16},
    "mask2former": {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 64,
        "dim_feedforward": 64,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 2,
        **_MASKS,
    },
    "eomt": _MASKS,
    "detr": _DETR,
    "conditional_detr": _DETR,
    "rtdetr_v2": {
        **_DETR,
        "encoder_hidden_dim": 32,
        "decoder_in_channels": [32, 32, 32],
        "num_denoising": 4,
        "hidden_expansion": 0.5,
    },
    "dpt": _DEPTH,
    "depth_anything": {**_DEPTH, "head_hidden_size": 16},
    "zoedepth": {
        **_DEPTH,
        "num_relative_features": 8,
        "bottleneck_features": 32,
        "bin_embedding_dim": 16,
        "num_attractors": [4, 2, 2, 1],
        "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
    },
    "chmv2": {
        "fusion_hidden_size": 32,
        "post_process_channels": [8, 16, 24, 32],
        "head_hidden_size": 16,
        "number_output_channels": 16,
    },
}
CASES = [(name, task) for name, head in DENSE_HEADS.items() for task in head.tasks]
NOTES = {
    "upernet": "batch norm: batches of two or more images",
    "mask2former": "pyramid of strides 4 to 32; sides that are multiples of 32",
    "eomt": "blocks of its own, from the exported transformers checkpoint; square images of image_size",
    "conditional_detr": "one map, plain attention, an encoder of its own",
    "rtdetr_v2": "pyramid of strides 8 to 32; sides that are multiples of 32; at most as many queries as positions",
    "dpt": "no loss in transformers; 16 depths a patch side",
    "depth_anything": "no loss in transformers; one depth a pixel",
    "zoedepth": "no loss in transformers; 16 depths a patch side",
    "chmv2": "no loss in transformers; 16 depths a patch side",
}


def make_backbone(patch_size: int = 8) -> Dinov3Backbone:
    torch.manual_seed(0)
    backbone = Dinov3Backbone(
        Dinov3Config(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            patch_size=patch_size,
            image_size=IMAGE_SIZE,
        )
    )
    for parameter in backbone.parameters():
        # So that every weight, including layer scale, affects the outputs.
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


def make_head(backbone: Dinov3Backbone, name: str, task: str, **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    labels: dict[str, Any] = {} if task == "depth" else {"num_labels": len(SCENE_CLASSES) + (task == "segmentation")}
    return build_head(backbone, task, name, **labels, **TINY[name], **config)


def scenes(num_images: int, split: str = "train") -> dict:
    """Return images [B,3,S,S], masks [B,S,S] (0 background, 1 + class), depths (m) [B,S,S], and DETR's labels."""
    batch: dict[str, list] = {"pixel_values": [], "masks": [], "depths": [], "objects": []}
    for row in load_scenes(split, num_images, subset="crowded", image_size=IMAGE_SIZE).with_format(None).to_list():
        mask, instances = read_mask(row["mask"]), read_mask(row["instances"])
        boxes, classes = boxes_of_masks(instances, mask)
        boxes = box_convert(boxes, "xywh", "cxcywh") / IMAGE_SIZE
        batch["pixel_values"].append(decode_image(row["image"]).float() / 127.5 - 1)
        batch["masks"].append(mask)
        batch["depths"].append(read_mask(row["depth"]) / 1000)
        batch["objects"].append({"class_labels": torch.tensor(classes), "boxes": boxes})
    return {name: values if name == "objects" else torch.stack(values) for name, values in batch.items()}


def targets(name: str, task: str, batch: dict) -> dict:
    """Return the arguments with which the head computes its loss; empty if transformers has no loss for it."""
    if task == "depth":
        return {}
    if task == "detection":
        return {"labels": copy.deepcopy(batch["objects"])}
    if name == "upernet":
        return {"labels": batch["masks"]}
    # Background is a class in semantic segmentation, but no segment in instance and panoptic segmentation.
    return mask_targets(batch["masks"]) if task == "segmentation" else mask_targets(batch["masks"] - 1, -1)


def predictions(outputs: ModelOutput) -> dict[str, torch.Tensor]:
    """Return the predictions among the outputs, by name."""
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits", "predicted_depth")
    return {name: outputs[name] for name in names if outputs.get(name) is not None}


def largest_difference(outputs: ModelOutput, others: ModelOutput) -> float:
    ours, theirs = predictions(outputs), predictions(others)
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def seen_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[tuple[int, ...], list[torch.Tensor]]:
    """Return the stages of the backbone that a head reads, and the features that it receives in a forward pass."""
    seen = []
    if model.config.model_type == "eomt_dinov3":
        place, queries = model.config.num_hidden_layers - model.config.num_blocks, model.config.num_queries
        block = model.layers[place]
        handle = block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:, queries:]))
        stages = (place,)
    else:
        backbone = next(module for module in model.modules() if isinstance(module, Dinov3Backbone))
        handle = backbone.register_forward_hook(lambda _, __, output: seen.extend(output.feature_maps))
        stages = tuple(backbone.out_indices)
    # Also asking for hidden states must not change the features that the head receives.
    model(pixel_values, output_hidden_states=True)
    handle.remove()
    return stages, seen


def expected_features(
    backbone: Dinov3Backbone, model: PreTrainedModel, pixel_values: torch.Tensor, stages: tuple[int, ...]
) -> list[torch.Tensor]:
    """Return the features that a head should receive, computed from the hidden states of `backbone`."""
    states = backbone(pixel_values, output_hidden_states=True).hidden_states
    if model.config.model_type == "eomt_dinov3":
        return [states[stage] for stage in stages]
    tokens = [backbone.norm(states[stage]) for stage in stages]
    patches = [token[:, 1 + backbone.config.num_register_tokens :] for token in tokens]
    if model.config.model_type in ("dpt", "depth_anything", "zoedepth"):
        return [torch.cat([token[:, :1], patch], dim=1) for token, patch in zip(tokens, patches, strict=True)]
    grid = [side // backbone.config.patch_size for side in pixel_values.shape[2:]]
    return [patch.transpose(1, 2).unflatten(2, grid) for patch in patches]


def check(name: str, task: str) -> dict:
    """Check one head: a forward pass, its features, a backward pass, and saving and loading."""
    backbone, batch = make_backbone(), scenes(2)
    model, pixel_values = make_head(backbone, name, task), batch["pixel_values"]
    with torch.no_grad():
        outputs = model(pixel_values)
        stages, seen = seen_features(model, pixel_values)
        expected = expected_features(backbone, model, pixel_values, stages)
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            loaded = type(model).from_pretrained(directory)
        round_trip = largest_difference(outputs, loaded(pixel_values))
    model.train()
    arguments = targets(name, task, batch)
    trained = model(pixel_values, **arguments)
    (trained.loss if arguments else sum(value.sum() for value in predictions(trained).values())).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    patch_embedding = model.get_input_embeddings() if name == "eomt" else embedding_of(model)
    return {
        "head": name,
        "task": task,
        "model": type(model).__name__,
        "forward": {output: tuple(value.shape) for output, value in predictions(outputs).items()},
        "stages": stages,
        "features": max((a - b).abs().max().item() for a, b in zip(seen, expected, strict=True)),
        "backward": "loss" if arguments else "sum of outputs",
        "finite": all(gradient.isfinite().all() for gradient in gradients),
        "gradient": patch_embedding.weight.grad.norm().item(),
        "round trip": round_trip,
        "parameters": sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in backbone.parameters()),
        "note": NOTES.get(name, ""),
    }


def embedding_of(model: PreTrainedModel) -> torch.nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, Dinov3Backbone)).get_input_embeddings()


def table_row(result: dict) -> dict:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in result["forward"].items())
    return {
        "head": result["head"],
        "task": result["task"],
        "transformers class": result["model"],
        "forward": shapes,
        "features differ by": f"{result['features']:.0e}" if result["features"] else "0",
        "backward": result["backward"] if result["finite"] and result["gradient"] else "FAILS",
        "round trip differs by": f"{result['round trip']:.0e}" if result["round trip"] else "0",
        "parameters of the head (tiny)": result["parameters"],
        "note": result["note"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help="file whose table is replaced")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = [table_row(check(name, task)) for name, task in CASES]
    table = markdown([tuple(rows[0]), *(tuple(row.values()) for row in rows)])
    print(table)
    if arguments.docs:
        replace_table(arguments.docs, "benchmarks/heads_table.py", table)


if __name__ == "__main__":
    main()
