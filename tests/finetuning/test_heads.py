import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dinov3_hf import Dinov3Backbone, Dinov3Config, Dinov3ForImageClassification, Dinov3Model
from dinov3_hf.finetuning.adapters import backbone_of
from dinov3_hf.finetuning.heads import DENSE_HEADS, build_head, class_scores, mask_targets


TABLE = SimpleNamespace(**runpy.run_path(Path(__file__).parents[2] / "benchmarks" / "heads_table.py"))
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "patch_size": 8, "image_size": 64}


def backbone(model_class=Dinov3Backbone, **fields):
    return model_class(Dinov3Config(**{**SMALL, "num_hidden_layers": 4, **fields})).eval()


@pytest.mark.parametrize("name, task", TABLE.CASES)
def test_a_head_sees_the_backbones_features_trains_and_round_trips(name, task):
    found = TABLE.check(name, task)
    # EoMT's blocks are transformers' own, which round otherwise.
    assert found["features"] <= (1e-5 if name == "eomt" else 0)
    assert found["stages"] == {"eomt": (3,), "detr": (4,), "conditional_detr": (4,), "rtdetr_v2": (1, 3, 4)}.get(
        name, (1, 2, 3, 4)
    )
    assert found["round trip"] <= 1e-6
    assert found["finite"] and found["gradient"] > 0
    assert found["backward"] == ("sum of outputs" if task == "depth" else "loss")
    assert found["model"] == DENSE_HEADS[name].model


def test_the_table_has_a_line_for_every_head():
    assert {name for name, _ in TABLE.CASES} == set(DENSE_HEADS) == set(TABLE.TINY)
    row = TABLE.table_row(TABLE.check("detr", "detection"))
    assert (row["features differ by"], row["backward"], row["round trip differs by"]) == ("0", "loss", "0")


def scene_loss(model, name, task, batch):
    if task != "depth":
        return model(batch["pixel_values"], **TABLE.targets(name, task, batch)).loss
    depths = model(batch["pixel_values"]).predicted_depth[:, None]
    return (nn.functional.interpolate(depths, size=64, mode="bilinear")[:, 0] - batch["depths"]).abs().mean()


@pytest.mark.parametrize(
    "name, task, steps",
    [
        ("dpt", "depth", 25),
        pytest.param("mask2former", "segmentation", 60, marks=pytest.mark.slow),
        pytest.param("conditional_detr", "detection", 40, marks=pytest.mark.slow),
    ],
)
def test_a_strong_decoder_learns_four_scenes_on_the_frozen_backbone(name, task, steps):
    batch, given = TABLE.scenes(4), TABLE.make_backbone()
    model = TABLE.make_head(given, name, task, freeze_backbone=True).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = scene_loss(model, name, task, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for key, tensor in backbone_of(model)[1].state_dict().items():
        assert torch.equal(tensor, given.state_dict()[key])
    if name == "mask2former":
        with torch.no_grad():
            predicted = class_scores(model.eval()(batch["pixel_values"])).argmax(1)
        masks = batch["masks"][:, ::4, ::4]
        assert (predicted == masks).float().mean() > (masks == 0).float().mean()


@pytest.mark.parametrize("name", ["upernet", "mask2former", "eomt"])
def test_freezing_stops_the_copied_weights_alone(name):
    given = backbone(drop_path_rate=0.5)
    model = build_head(given, "segmentation", name, 11, freeze_backbone=True, **TABLE.TINY[name])
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == len(list(given.parameters())) - (name == "eomt")  # which has no mask token
    trained = {key.split(".")[0] for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and "mask_token" not in str(trained)
    if name == "mask2former":
        assert model.model.pixel_level_module.encoder.levels[0][0].weight.requires_grad
    images = torch.randn(2, 3, 64, 64)
    if name != "eomt":
        inside = backbone_of(model.train())[1]
        assert inside.config.drop_path_rate == 0 and given.config.drop_path_rate == 0.5
        assert torch.equal(inside(images).feature_maps[-1], given(images).feature_maps[-1])


def test_a_heads_weights_are_a_copy():
    given = backbone(Dinov3Model)
    model = build_head(given, "depth", **TABLE.TINY["dpt"])
    with torch.no_grad():
        backbone_of(model)[1].norm.weight.zero_()
    assert (given.norm.weight == 1).all()
    assert given.config.out_indices == [4] and given.config.reshape_hidden_states
    assert not model.training


@pytest.mark.parametrize("depth, stages", [(4, [1, 2, 3, 4]), (5, [1, 2, 4, 5]), (12, [3, 6, 9, 12])])
def test_four_blocks_are_evenly_spaced(depth, stages):
    model = build_head(backbone(num_hidden_layers=depth), "depth", **TABLE.TINY["dpt"])
    assert backbone_of(model)[1].out_indices == stages


def test_eomt_takes_its_sizes_from_the_backbone():
    given = backbone(patch_size=16, num_hidden_layers=8, layerscale_value=None, rope_theta=50.0)
    model = build_head(given, "universal", "eomt", 3, num_queries=5)
    assert (model.config.num_blocks, model.config.rope_parameters["rope_theta"]) == (2, 50.0)
    output = model(torch.randn(1, 3, 64, 64))
    assert output.masks_queries_logits.shape == (1, 5, 16, 16)
    assert output.class_queries_logits.shape == (1, 5, 4)
    assert (model.layers[0].layer_scale1.lambda1 == 1).all()


def test_class_names_reach_the_configuration():
    names = {0: "sky", 1: "sea", 2: "sand"}
    model = build_head(backbone(), "segmentation", id2label=names, num_labels=3, **TABLE.TINY["upernet"])
    assert model.config.id2label == names and model.config.label2id["sand"] == 2
    assert model.decode_head.classifier.out_channels == 3


def test_mask_targets_split_classes_and_leave_out_what_is_ignored():
    masks = torch.tensor([[[0, 0], [2, 255]], [[255, 255], [255, 1]]])
    found = mask_targets(masks)
    assert [classes.tolist() for classes in found["class_labels"]] == [[0, 2], [1]]
    assert found["mask_labels"][0].tolist() == [[[1, 1], [0, 0]], [[0, 0], [1, 0]]]
    assert found["mask_labels"][1].tolist() == [[[0, 0], [0, 1]]]


def test_class_scores_weigh_masks_by_classes():
    probabilities = torch.tensor([[[0.2, 0.7, 0.1], [0.3, 0.1, 0.6]]])
    masks = torch.tensor([[[[0.9, 0.5]], [[0.1, 0.8]]]])
    outputs = SimpleNamespace(class_queries_logits=probabilities.log(), masks_queries_logits=masks.logit())
    expected = torch.tensor([[[[0.2 * 0.9 + 0.3 * 0.1, 0.2 * 0.5 + 0.3 * 0.8]], [[0.64, 0.43]]]])
    torch.testing.assert_close(class_scores(outputs), expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "segment"}, "task: got 'segment', accepted: segmentation, depth, detection, universal"),
        (
            {"task": "depth", "head": "dtp"},
            r"head: got 'dtp' \(did you mean 'dpt'\?\), accepted for depth: dpt, depth_anything, zoedepth, chmv2",
        ),
        ({"task": "depth", "head": "detr"}, "head: got 'detr', accepted for depth: dpt, "),
        ({"task": "depth", "num_labels": 3}, "num_labels: got 3, accepted: none for depth"),
        ({"task": "segmentation"}, "num_labels: got None, accepted: at least 2, or id2label"),
        ({"task": "segmentation", "num_labels": 1}, "num_labels: got 1, accepted: at least 2"),
        ({"task": "detection", "num_labels": 0}, "num_labels: got 0, accepted: at least 1"),
        ({"task": "detection", "id2label": {1: "a", 2: "b"}}, r"id2label: got keys \[1, 2\] .* 0 to num_labels - 1"),
        ({"task": "detection", "id2label": {0: "a"}, "num_labels": 2}, r"id2label: got keys \[0\] and num_labels=2"),
        (
            {"task": "detection", "num_labels": 2, "num_querys": 5},
            "num_querys: got 5, .* DetrConfig such as num_queries",
        ),
        ({"task": "depth", "backbone_config": {}}, "backbone_config: got {}, accepted: a field of DPTConfig"),
        (
            {"task": "universal", "head": "eomt", "num_labels": 2, "image_size": 60},
            "image_size: got 60, accepted for eomt: one side, a multiple of 8",
        ),
        (
            {"task": "universal", "head": "eomt", "num_labels": 2, "num_blocks": 5},
            "num_blocks: got 5, accepted: 1 to 4, the blocks of the backbone",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        build_head(backbone(), **arguments)
    assert "\n" not in str(error.value)


def test_a_backbone_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="head: got 'dpt' on a backbone of 3 blocks, accepted: at least 4"):
        build_head(backbone(num_hidden_layers=3), "depth")
    classifier = Dinov3ForImageClassification(backbone().config)
    with pytest.raises(ValueError, match="backbone: got Dinov3ForImageClassification, accepted: Dinov3Backbone"):
        build_head(classifier, "depth")
    with pytest.raises(ValueError, match="rope_normalize_coords='min'"):
        build_head(backbone(rope_normalize_coords="min"), "universal", "eomt", 2)
