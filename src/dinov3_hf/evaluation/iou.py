"""Confusion matrix, and intersection over union computed from it."""

import torch


def confusion_matrix(predictions: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the confusion matrix [K,K] of predictions [Q] and labels [Q]; rows are labels, columns predictions."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: torch.Tensor) -> torch.Tensor:
    """IoU of each class [K] from a confusion matrix [K,K]; NaN for classes that no label has."""
    hits, labelled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    return torch.where(labelled > 0, hits / (labelled + predicted - hits), torch.nan)
