"""Logistic regression on frozen features (DINOv3, section 6.2.1; Oquab et al. 2023, DINOv2, section 7.2)."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import Refused
from ..terminal import progress_bar
from ..visualization.charts import curve_picture
from .bench import Bench
from .result import Result
from .robustness import ClassificationData


if TYPE_CHECKING:
    from datasets import Dataset
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

# One value per decade: accuracy changes little between neighbouring values.
C_GRID = tuple(10.0**exponent for exponent in range(-6, 6))
MAX_ITERATIONS = 1000
FEATURES = {
    "cls": "final-normed class token",
    "cls+mean": "final-normed class token joined with the mean of the final-normed patch tokens",
}


def evaluate_linear(
    bench: Bench,
    train: "Dataset",
    test: "Dataset",
    image_column: str = "image",
    label_column: str = "label",
    out_of_distribution: "dict[str, Dataset] | None" = None,
    features: str = "cls",
) -> Result:
    """Measure logistic regression on frozen features; baselines are the randomly initialised network and raw pixels.

    `out_of_distribution` holds further test sets by name, measured with the same classifiers. The solver runs on the
    CPU and takes hours for a million images; use `evaluate_linear_sgd` for those.
    """
    if features not in FEATURES:
        raise Refused(f"features: got {features!r}, accepted: {', '.join(FEATURES)}")
    data = ClassificationData.open(
        bench, "linear", train, test, out_of_distribution or {}, features, image_column, label_column
    )
    labels, fit, held = (part.numpy() for part in (data.train.labels, data.fit, data.held))
    classifiers, chosen, curves = {}, {}, {}
    for name, tokens in data.train.features.items():
        values = tokens.numpy()
        curve = accuracies_by_c(
            values[fit], labels[fit], values[held], labels[held], f"linear: C of {name}", bench.progress
        )
        # Of equally good values the first: the strongest regularisation.
        chosen[name] = max(curve, key=curve.__getitem__)
        curves[name] = curve
        classifiers[name] = fit_logistic(values, labels, chosen[name])

    def predict(name: str, tokens: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(classifiers[name].predict(tokens.numpy()))

    protocol = {
        "features": FEATURES[features] + ", every dimension standardised by its mean and standard deviation on train",
        "classifier": "logistic regression with an L2 penalty, LBFGS, refitted on all of train with the chosen C",
        "C": chosen,
        "C_grid": list(C_GRID),
        "C_chosen_by": "accuracy on a stratified tenth of train, held out from the fits of the grid",
        "C_at_an_end_of_the_grid": [name for name, c in chosen.items() if c in (C_GRID[0], C_GRID[-1])],
        "max_iterations": MAX_ITERATIONS,
        "iterations": {name: int(classifier[-1].n_iter_.max()) for name, classifier in classifiers.items()},
    }
    series = {name: list(curve.items()) for name, curve in curves.items()}
    chart = curve_picture("linear: top-1 on the held-out tenth of train", series, "C", log_x=True)
    return data.result(bench, predict, protocol, {"C": chart})


def fit_logistic(features: np.ndarray, labels: np.ndarray, c: float) -> "Pipeline":
    """Fit a classifier on features [N,D] with classes [N]; `c` weights the summed loss against the penalty."""
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(_scaler(), _logistic(C=c))
    with _quiet():
        return pipeline.fit(features, labels)


def accuracies_by_c(
    features: np.ndarray,
    labels: np.ndarray,
    held_features: np.ndarray,
    held_labels: np.ndarray,
    description: str,
    progress: bool,
) -> dict[float, float]:
    """Fit on features [N,D] with classes [N] for every C of the grid; return the accuracy on the held-out set by C."""
    scaler = _scaler().fit(features)
    features, held_features = scaler.transform(features), scaler.transform(held_features)
    # Each fit starts from the previous solution, which is close.
    classifier, accuracies = _logistic(warm_start=True), {}
    for c in progress_bar(C_GRID, desc=description, disable=not progress):
        with _quiet():
            classifier.set_params(C=c).fit(features, labels)
        accuracies[c] = float((classifier.predict(held_features) == held_labels).mean())
    return accuracies


def _scaler() -> "StandardScaler":
    # The penalty treats all dimensions alike, but their scales differ by orders of magnitude: without standardisation,
    # C would not be comparable between networks, and the grid would not cover randomly initialised ones, whose
    # features hardly vary.
    from sklearn.preprocessing import StandardScaler

    return StandardScaler()


def _logistic(**settings: Any) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=MAX_ITERATIONS, **settings)


def _quiet() -> warnings.catch_warnings:
    # A fit that reaches the maximum of iterations needs no warning: the protocol reports the number of iterations.
    from sklearn.exceptions import ConvergenceWarning

    return warnings.catch_warnings(action="ignore", category=ConvergenceWarning)
