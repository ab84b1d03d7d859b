"""Fine-tuning for image classification."""

import copy
from typing import TYPE_CHECKING

import torch
from torchvision.transforms import v2
from transformers.modeling_outputs import ImageClassifierOutput

from ..data.columns import read_vocabulary
from ..data.pixels import decode_image
from ..errors import Refused
from ..evaluation.labels import check_two_classes, hits_interval, most_frequent_hits
from ..models.modeling_dinov3 import Dinov3ForImageClassification, Dinov3Model
from .arguments import FinetuneRecipe
from .examples import SMALLEST_CROP, View


if TYPE_CHECKING:
    from datasets import Dataset


class Classification:
    """Image classification with a linear layer on the class token and the mean patch token; top-1 accuracy."""

    def __init__(self, recipe: FinetuneRecipe, train: "Dataset", test: "Dataset", view: View, image_column: str):
        self.view, self.image_column, self.label_column = view, image_column, recipe.data.label_column
        self.names, self.index_of = read_vocabulary(train, train, self.label_column)[:2]
        names, of_test, _ = read_vocabulary(test, test, self.label_column)
        tested = {value: names[index] for value, index in of_test.items()}
        beyond = sorted({tested[value] for value in test.unique(self.label_column)} - set(self.names))
        if beyond:
            raise Refused(
                f"label_column: test has the class{'es' if len(beyond) > 1 else ''} {', '.join(beyond[:5])}, "
                f"accepted: the {len(self.names)} classes of train"
            )
        check_two_classes(test, self.label_column)
        # Splits may number their classes differently.
        self.test_index_of = {value: self.names.index(name) for value, name in tested.items() if name in self.names}
        truth = torch.tensor([self.test_index_of[value] for value in test[self.label_column]])
        self.chance = most_frequent_hits(truth).double().mean().item()
        crop = v2.RandomResizedCrop(view.size, (SMALLEST_CROP, 1.0), antialias=True)
        self.crop = v2.Compose([crop, v2.RandomHorizontalFlip()])
        self.augment = recipe.data.augment

    def build(self, backbone: Dinov3Model, name: str, fields: dict) -> Dinov3ForImageClassification:
        """Return the backbone with a new linear layer; `fields` are not used, since the layer has no configuration."""
        config = copy.deepcopy(backbone.config)
        config.id2label = dict(enumerate(self.names))
        config.label2id = {label: index for index, label in enumerate(self.names)}
        config.problem_type, config.name_or_path = "single_label_classification", name
        model = Dinov3ForImageClassification(config)
        model.dinov3.load_state_dict(backbone.state_dict())
        return model

    def read(self, row: dict, train: bool) -> dict:
        """Return the pixel values [3,S,S] and the class index of a row; raises `BadImage`."""
        image = decode_image(row[self.image_column])
        image = self.crop(image) if train and self.augment else image
        index_of = self.index_of if train else self.test_index_of
        return {"pixel_values": self.view.image(image), "labels": index_of[row[self.label_column]]}

    def targets(self, labels: torch.Tensor) -> dict:
        """Return the arguments with which the model computes its loss."""
        return {"labels": labels}

    def loss(self, outputs: ImageClassifierOutput, labels: torch.Tensor) -> torch.Tensor:
        """Return the model's own loss, the cross-entropy."""
        return outputs.loss

    def statistics(self, outputs: ImageClassifierOutput, labels: torch.Tensor) -> torch.Tensor:
        """Return [B,1]: 1 where the predicted class is right, else 0."""
        return (outputs.logits.argmax(-1) == labels).float()[:, None]

    def metrics(self, statistics: torch.Tensor) -> list[dict]:
        """Return the metrics from the statistics [N,1] of all test images."""
        return [
            {"metric": "top-1", "model": statistics.mean().item(), "chance": self.chance}
            | {"interval": hits_interval(statistics[:, 0] > 0)}
        ]
