"""How fast is a forward pass, compared with transformers, timm and the bare matrix products of the same shapes?

All run the same weights in one process, in interleaved rounds whose order changes, so that other load on the machine
slows them equally; medians are printed.

    python benchmarks/forward.py --sizes vits16 vitb16 --dtypes float32 bfloat16
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import linear
from transformers import DINOv3ViTModel

from dinov3_hf import Dinov3Config, Dinov3Model
from dinov3_hf.checkpoints import export


TIMM_NAMES = {"vits16": "vit_small_patch16_dinov3_qkvb", "vitb16": "vit_base_patch16_dinov3_qkvb"}


def matrix_products(
    config: Dinov3Config, batch: int, image_size: int, dtype: torch.dtype, device: str
) -> Callable[[], None]:
    """Return a function that runs only the matrix products every implementation needs: linear layers and attention."""
    width, hidden, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    patches = (image_size // config.patch_size) ** 2
    tokens = patches + 1 + config.num_register_tokens
    options = {"dtype": dtype, "device": device}
    pixels = torch.randn(batch, patches, 3 * config.patch_size**2, **options)
    embed = torch.randn(width, pixels.shape[-1], **options)
    states, wide = torch.randn(batch, tokens, width, **options), torch.randn(batch, tokens, hidden, **options)
    square, up, down = (torch.randn(*shape, **options) for shape in ((width, width), (hidden, width), (width, hidden)))
    queries = states.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1).contiguous()
    weights = torch.randn(batch * heads, tokens, tokens, **options)

    def run() -> None:
        linear(pixels, embed)
        for _ in range(config.num_hidden_layers):
            for _ in range(4):
                linear(states, square)
            torch.bmm(queries, queries.transpose(1, 2))
            torch.bmm(weights, queries)
            linear(states, up)
            linear(wide, down)

    return run


def contenders(size: str, dtype: torch.dtype, batch: int, image_size: int, device: str) -> dict[str, Callable]:
    torch.manual_seed(0)
    ours = Dinov3Model(Dinov3Config.from_size(size)).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    images = torch.randn(batch, 3, image_size, image_size)
    with tempfile.TemporaryDirectory() as folder:
        export(ours, folder)
        reference = DINOv3ViTModel.from_pretrained(folder).eval()
        export(ours, folder, layout="meta")
        state = torch.load(f"{folder}/model.pth", weights_only=True)
    expected = ours(images).last_hidden_state
    torch.testing.assert_close(reference(images).last_hidden_state, expected, atol=1e-4, rtol=1e-3)
    models = {"dinov3_hf": ours, "transformers": reference}
    try:
        import timm
        from timm.models.eva import checkpoint_filter_fn
    except ImportError:
        print("timm is not installed: skipped")
    else:
        models["timm"] = timm.create_model(TIMM_NAMES[size], num_classes=0).eval()
        converted = checkpoint_filter_fn(state, models["timm"])
        models["timm"].load_state_dict({k: v for k, v in converted.items() if k != "mask_token"})
        models["timm"].forward = models["timm"].forward_features
        torch.testing.assert_close(models["timm"](images), expected, atol=1e-4, rtol=1e-3)
    images = images.to(device, dtype)
    runs = {name: partial(model.to(device, dtype), images) for name, model in models.items()}
    return {**runs, "matrix products": matrix_products(ours.config, batch, image_size, dtype, device)}


def measure(runs: dict[str, Callable], rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of each run."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        names = list(runs)[index % len(runs) :] + list(runs)[: index % len(runs)]
        for name in names:
            start = time.perf_counter()
            runs[name]()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["vits16", "vitb16"], choices=list(TIMM_NAMES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads; ratio: ours / other")
    for size in arguments.sizes:
        for dtype in arguments.dtypes:
            shape = (arguments.batch, arguments.image_size, arguments.device)
            seconds = measure(contenders(size, getattr(torch, dtype), *shape), arguments.rounds, arguments.device)
            for name, value in seconds.items():
                speed, ratio = arguments.batch / value, value / seconds["dinov3_hf"]
                print(f"{size} {dtype:9} {name:16} {speed:8.1f} images/s   {ratio:5.2f}")


if __name__ == "__main__":
    main()
