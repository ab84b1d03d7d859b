"""What fine-tuning learns of whole images, and how rows of a data set become examples."""

import copy

import torch
from torchvision.transforms import v2

from ..data.columns import read_vocabulary
from ..data.pixels import decode_image
from ..errors import Refused
from ..models.modeling_dinov3 import Dinov3ForImageClassification, Dinov3Model
from .examples import SMALLEST_CROP, View


class Classification:
    """Classes of whole images by a linear layer on class token and mean patch token; top-1."""

    def __init__(self, recipe, train, test, view: View, image_column: str):
        self.view, self.image_column, self.label_column = view, image_column, recipe.data.label_column
        self.names, self.index_of = read_vocabulary(train, train, self.label_column)[:2]
        names, of_test, _ = read_vocabulary(test, test, self.label_column)
        tested = {value: names[index] for value, index in of_test.items()}
        beyond = sorted({tested[value] for value in test.unique(self.label_column)} - set(self.names))
        if beyond:
            raise Refused(
                f"label_column: test has the class{'es' if len(beyond) > 1 else ''} {', '.join(beyond[:5])}, accepted: "
                f"the {len(self.names)} classes of train"
            )
        # Splits may number their classes differently.
        self.test_index_of = {value: self.names.index(name) for value, name in tested.items() if name in self.names}
        counts = torch.bincount(torch.tensor([self.index_of[value] for value in train[self.label_column]]))
        truth = torch.tensor([self.test_index_of[value] for value in test[self.label_column]])
        self.chance = (truth == counts.argmax()).double().mean().item()
        crop = v2.RandomResizedCrop(view.size, (SMALLEST_CROP, 1.0), antialias=True)
        self.crop = v2.Compose([crop, v2.RandomHorizontalFlip()])
        self.augment = recipe.data.augment

    def build(self, backbone: Dinov3Model, name: str, fields: dict) -> Dinov3ForImageClassification:
        """Return the backbone's weights with a new linear layer, which has no fields of its own."""
        config = copy.deepcopy(backbone.config)
        config.id2label = dict(enumerate(self.names))
        config.label2id = {label: index for index, label in enumerate(self.names)}
        config.problem_type, config.name_or_path = "single_label_classification", name
        model = Dinov3ForImageClassification(config)
        model.dinov3.load_state_dict(backbone.state_dict())
        return model

    def read(self, row: dict, train: bool) -> dict:
        """Return pixel values [3,S,S] and the class of a row; raises BadImage."""
        image = decode_image(row[self.image_column])
        image = self.crop(image) if train and self.augment else image
        index_of = self.index_of if train else self.test_index_of
        return {"pixel_values": self.view.image(image), "labels": index_of[row[self.label_column]]}

    def targets(self, labels: torch.Tensor) -> dict:
        """Return what the head's own loss takes."""
        return {"labels": labels}

    def loss(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """The head's own: cross-entropy."""
        return outputs.loss

    def statistics(self, outputs, labels: torch.Tensor) -> torch.Tensor:
        """Return [B,1]: 1 where the class is found."""
        return (outputs.logits.argmax(-1) == labels).float()[:, None]

    def metrics(self, statistics: torch.Tensor) -> list[dict]:
        """Return the measures of figures [N,1]."""
        return [{"metric": "top-1", "model": statistics.mean().item(), "chance": self.chance}]
