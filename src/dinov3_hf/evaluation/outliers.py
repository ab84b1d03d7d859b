"""Artefacts of dense features (DINOv3, appendix A): patches of high norm, and dimensions of extreme magnitude."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from ..data.columns import check_column, undecoded
from ..data.pixels import decode_image
from ..data.views import check_image_size
from ..visualization.charts import curve_picture, histogram_picture
from ..visualization.heat import heat_picture
from .bench import Bench
from .feature_store import Extractor, Features
from .result import Result


if TYPE_CHECKING:
    from datasets import Dataset

# Thresholds: a patch is an outlier above 3 times the median norm of its layer, a dimension above 10 times the median
# magnitude of its layer's dimensions.
HIGH_NORM, EXTREME_DIMENSION = 3.0, 10.0
NUM_DRAWN = 6


def evaluate_outliers(bench: Bench, test: "Dataset", image_column: str = "image") -> Result:
    """Measure norms and dimensions of patch tokens after every block, before and after the final norm.

    Layer 0 is the patch embedding. A patch counts as high-norm above 3 times the median norm of its layer's patches, a
    dimension as extreme if its mean magnitude is above 10 times the median dimension's. For the last layer, the shares
    of the largest dimension and of the first principal component are given for its output, after the final norm, and
    after batch norm (each dimension standardised) in place of the final norm. None of these metrics is better high or
    low in itself.
    """
    check_image_size(bench.preprocessing.image_size, bench.patch_size)
    check_column(test, image_column, "image_column")
    layers = range(bench.model.config.num_hidden_layers + 1)
    statistics, skipped = {}, 0
    for name, network in bench.networks.items():
        features = bench.store.extract(
            test,
            image_column,
            bench.preprocessing,
            _extractors(network, bench.extractors("patches", raw_pixels=False)[name].key, bench.patch_size),
            bench.batch_size,
            bench.device,
            f"outliers: images, {name}",
            bench.progress,
        )
        skipped = len(test) - len(features["norms"])
        statistics[name] = {
            "norms": features["norms"].stack(),
            "dimensions": features["magnitudes"].stack().double().mean(0).unflatten(0, (len(layers), -1)),
            "shares": _dimension_shares(features),
            "kept": features["norms"].kept,
        }
    metrics: list[dict[str, Any]] = []
    for layer in layers:
        norms = {name: one["norms"][..., layer] for name, one in statistics.items()}
        ratios = {
            name: one["dimensions"][layer] / one["dimensions"][layer].median() for name, one in statistics.items()
        }
        medians = {name: one.median() for name, one in norms.items()}
        for title, values in (
            ("high-norm patches", {n: (norms[n] > HIGH_NORM * medians[n]).double().mean() for n in statistics}),
            ("largest / median norm", {n: norms[n].max() / medians[n] for n in statistics}),
            ("extreme dimensions", {n: (ratios[n] > EXTREME_DIMENSION).sum() for n in statistics}),
            ("largest / median dimension", {n: ratios[n].max() for n in statistics}),
        ):
            metrics.append({"metric": title, "layer": layer, **{n: float(value) for n, value in values.items()}})
    for tokens in ("before norm", "after norm", "after batch norm"):
        for title in ("squared magnitude in the largest dimension", "variance in the first principal component"):
            values = {name: one["shares"][tokens][title] for name, one in statistics.items()}
            metrics.append({"metric": title, "tokens": tokens, **values})
    of_dimensions = [line for line in metrics if line["metric"] == "largest / median dimension"]
    dimensions = {name: [(line["layer"], line[name]) for line in of_dimensions] for name in statistics}
    return Result(
        task="outliers",
        protocol={
            "features": "patch tokens after every block, before the final norm; layer 0 is the patch embedding",
            "high-norm patches": f"share of patches of more than {HIGH_NORM:g} times the layer's median norm",
            "extreme dimensions": f"number of dimensions whose mean magnitude is over {EXTREME_DIMENSION:g} times the "
            "median dimension's",
            "batch norm": "each dimension of the last block's output standardised over all patches",
            "num_test": len(test) - skipped,
            "num_patches": int(statistics["model"]["norms"][..., 0].numel()),
            "preprocessing": asdict(bench.preprocessing),
            "baseline_seed": bench.seed,
        },
        skipped_images={"test": skipped},
        metrics=metrics,
        pictures=_pictures(bench, test, image_column, statistics["model"], dimensions),
        details={
            "extreme_dimensions": [
                {"layer": layer, "dimensions": _extreme(statistics["model"]["dimensions"][layer])} for layer in layers
            ],
        },
    )


def _extractors(model: nn.Module, key: str, patch_size: int) -> dict[str, Extractor]:
    """Return the extractors of one forward pass: patch norms and dimensions by layer, and tokens of the last layer."""
    config = model.config
    width, layers, prefix = config.hidden_size, config.num_hidden_layers + 1, 1 + config.num_register_tokens
    parameter = next(model.parameters())
    last: list = [None, None]

    @torch.inference_mode()
    def hidden_states(pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        # Four extractors are called on the same batch: the network runs only for the first.
        if last[0] is not pixels:
            output = model(pixels.to(parameter.device, parameter.dtype), output_hidden_states=True)
            states = [state[:, prefix:].float() for state in output.hidden_states]
            last[:] = pixels, (states, output.patch_tokens.float())
        return last[1]

    def take(function: Callable) -> Callable:
        return lambda pixels: function(*hidden_states(pixels))

    return {
        "norms": Extractor(
            take(lambda states, _: torch.stack([state.norm(dim=2) for state in states], dim=2)),
            layers,
            f"norms by layer, {key}",
            patch_size,
        ),
        "magnitudes": Extractor(
            take(lambda states, _: torch.cat([state.abs().mean(1) for state in states], dim=1)),
            layers * width,
            f"magnitudes by layer, {key}",
        ),
        "before norm": Extractor(take(lambda states, _: states[-1]), width, f"before norm, {key}", patch_size),
        "after norm": Extractor(take(lambda _, tokens: tokens), width, f"after norm, {key}", patch_size),
    }


def _dimension_shares(features: dict[str, Features]) -> dict[str, dict[str, float]]:
    """Return the shares of the largest dimension and of the first component, for three forms of the last tokens."""
    shares = {}
    for name in ("before norm", "after norm"):
        total = outer = torch.zeros((), dtype=torch.double)
        count = 0
        for index in range(len(features[name])):
            tokens = features[name][index].double()
            total, outer, count = total + tokens.sum(0), outer + tokens.T @ tokens, count + len(tokens)
        mean, second = total / count, outer / count
        shares[name] = _shares(second.diagonal(), second - mean[:, None] * mean)
        if name == "before norm":
            covariance = second - mean[:, None] * mean
            scale = covariance.diagonal().clamp(min=1e-12).rsqrt()
            correlation = covariance * scale[:, None] * scale
            shares["after batch norm"] = _shares(correlation.diagonal(), correlation)
    return shares


def _shares(squares: torch.Tensor, covariance: torch.Tensor) -> dict[str, float]:
    """Return both shares from mean squares [D] and a covariance [D,D]."""
    variances = torch.linalg.eigvalsh(covariance).clamp(min=0)
    return {
        "squared magnitude in the largest dimension": (squares.max() / squares.sum()).item(),
        "variance in the first principal component": (variances[-1] / variances.sum()).item(),
    }


def _extreme(dimensions: torch.Tensor) -> list[int]:
    """Return the indices of extreme dimensions, the largest first."""
    order = dimensions.argsort(descending=True)
    return order[dimensions[order] > EXTREME_DIMENSION * dimensions.median()].tolist()


def _pictures(
    bench: Bench, test: "Dataset", image_column: str, statistics: dict, dimensions: dict[str, list[tuple[int, float]]]
) -> dict[str, Image.Image]:
    """Draw a histogram of patch norms, the ratios `dimensions` by layer, and maps of the norms on some images."""
    norms, kept = statistics["norms"], statistics["kept"][:NUM_DRAWN]
    last = norms.shape[-1] - 1
    chosen = {f"layer {layer}": norms[..., layer] for layer in sorted({1, (1 + last) // 2, last})}
    ratios = {name: (values / values.median()).flatten().numpy() for name, values in chosen.items()}
    rows, side = undecoded(test.select_columns([image_column])), bench.preprocessing.image_size // bench.patch_size
    images = [bench.preprocessing.image(decode_image(rows[row][image_column])) for row in kept]
    maps = {
        name: [(values[index] / values.max()).view(side, side).numpy() for index in range(len(kept))]
        for name, values in chosen.items()
    }
    return {
        "norm-histogram": histogram_picture(
            "Patches by norm", ratios, "norm / median norm of the layer", (HIGH_NORM, "high norm from here")
        ),
        "dimensions-by-layer": curve_picture("Largest / median dimension", dimensions, "layer", log_y=True),
        "norm-maps": heat_picture(images, maps, "highest norm of the layer"),
    }
