"""Confusion matrix, intersection over union computed from it, and what answers without looking reach."""

import numpy as np
import torch


# What `chance_iou` and `chance_accuracy` are, for a result's protocol.
CHANCE = (
    "the better of classes drawn at random, in expectation, and of the best constant answer: every pixel the class of "
    "most test pixels"
)


def confusion_matrix(predictions: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the confusion matrix [K,K] of predictions [Q] and labels [Q]; rows are labels, columns predictions."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: torch.Tensor) -> torch.Tensor:
    """IoU of each class [K] from a confusion matrix [K,K]; NaN for classes that no label has."""
    hits, labelled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    return torch.where(labelled > 0, hits / (labelled + predicted - hits), torch.nan)


def confusion_counts(confusion: torch.Tensor) -> np.ndarray:
    """Return hits, true pixels and predicted pixels of each class [3K] of a confusion matrix [K,K], in fp64."""
    return torch.cat([confusion.diagonal(), confusion.sum(1), confusion.sum(0)]).double().numpy()


def random_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Return the expected IoU of each class [K] if pixels get random classes; NaN for classes that do not occur."""
    share = confusion.sum(1).double() / confusion.sum()
    drawn = 1 / len(confusion)
    return torch.where(share > 0, share * drawn / (share + drawn - share * drawn), torch.nan)


def constant_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each class [K] if every pixel gets the class of most pixels: the best constant answer.

    Its own IoU is its share of the pixels, that of all other classes 0.
    """
    share = confusion.sum(1).double() / confusion.sum()
    iou = torch.where(share > 0, 0.0, torch.nan).double()
    iou[share.argmax()] = share.max()
    return iou


def chance_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each class [K] by the better of random classes and the best constant class, by their mean."""
    return max(random_iou(confusion), constant_iou(confusion), key=lambda iou: iou.nanmean().item())


def chance_accuracy(confusion: torch.Tensor) -> float:
    """Return the accuracy of the best constant class, which is never below that of random classes."""
    return (confusion.sum(1).max() / confusion.sum()).item()
