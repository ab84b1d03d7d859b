"""Windows over large images against a naive loop, and views of a network by layer and by size."""

import pytest
import torch

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.evaluation.layers import up_to_layer
from dinov3_hf.pipelines.windows import Windowed, window_starts


def tiny_model(layers=3):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 48}
    return Dinov3Model(Dinov3Config(**sizes, patch_size=8, image_size=32, layerscale_value=0.5)).eval()


@torch.inference_mode()
def naive_windows(model, image, window, stride):
    """Sum and count token by token."""
    rows, columns = image.shape[1] // 8, image.shape[2] // 8
    tokens, tops, lefts = {}, [0], [0]
    while tops[-1] + window < image.shape[1]:
        tops.append(min(tops[-1] + stride, image.shape[1] - window))
    while lefts[-1] + window < image.shape[2]:
        lefts.append(min(lefts[-1] + stride, image.shape[2] - window))
    classes = []
    for top in tops:
        for left in lefts:
            part = image[None, :, top : top + window, left : left + window]
            output = model(part)
            classes.append(output.pooler_output[0])
            for place, token in enumerate(output.patch_tokens[0]):
                row, column = divmod(place, part.shape[3] // 8)
                tokens.setdefault((top // 8 + row, left // 8 + column), []).append(token)
    mean = torch.stack([torch.stack(tokens[row, column]).mean(0) for row in range(rows) for column in range(columns)])
    return torch.stack(classes).mean(0), mean


@pytest.mark.parametrize("height, width, window", [(64, 80, 32), (32, 32, 48), (24, 72, 24), (88, 40, 32)])
def test_windows_are_those_of_a_naive_loop(height, width, window):
    model, images = tiny_model(), torch.randn(2, 3, height, width)
    windowed = Windowed(model, window)
    with torch.inference_mode():
        output = windowed(images)
    for index in range(2):
        cls_token, tokens = naive_windows(model, images[index], window, max(8, window * 2 // 3 // 8 * 8))
        torch.testing.assert_close(output.pooler_output[index], cls_token, rtol=0, atol=2e-6)
        torch.testing.assert_close(output.patch_tokens[index], tokens, rtol=0, atol=2e-6)


def test_a_window_as_large_as_the_image_changes_nothing():
    model, images = tiny_model(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(Windowed(model, 32)(images).patch_tokens, model(images).patch_tokens)
    assert window_starts(512, 512, 336) == [0] and window_starts(700, 512, 336) == [0, 188]
    assert window_starts(1024, 512, 336) == [0, 336, 512]
    with pytest.raises(ValueError, match="window: got 30, accepted: a multiple of the model's patch size"):
        Windowed(model, 30)


def test_a_network_cut_after_a_layer_gives_that_layer_under_the_final_norm():
    model, images = tiny_model(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        states = model(images, output_hidden_states=True).hidden_states
        for layer in (1, 2, 3):
            cut = up_to_layer(model, layer)
            torch.testing.assert_close(cut(images).last_hidden_state, model.norm(states[layer]))
            assert cut.config.num_hidden_layers == layer and len(cut.layer) == layer
        whole = up_to_layer(Windowed(model, 16), 3)(images)
        torch.testing.assert_close(whole.patch_tokens, Windowed(model, 16)(images).patch_tokens)
    assert len(model.layer) == model.config.num_hidden_layers == 3
    assert up_to_layer(model, 1).layer[0].mlp.up_proj.weight is model.layer[0].mlp.up_proj.weight


def test_windows_cover_everything():
    assert window_starts(100, 40, 24) == [0, 24, 48, 60]
    assert window_starts(40, 40, 24) == [0] == window_starts(16, 40, 24)
    assert window_starts(80, 40, 40) == [0, 40]
