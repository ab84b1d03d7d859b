"""Health of a text alignment: retrieval on held-out pairs during training."""

import itertools
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from dinov3_hf.data.captions import find_caption_columns, read_captions
from dinov3_hf.data.columns import find_image_column
from dinov3_hf.data.pixels import BadImage, decode_image
from dinov3_hf.errors import Refused
from dinov3_hf.models.modeling_dinotxt import DinoTxtModel

from .arguments import CaptionArguments
from .pairs import ImageTransform


if TYPE_CHECKING:
    import datasets

    from dinov3_hf.models.tokenization_dinotxt import DinoTxtTokenizer

BATCH_SIZE = 64


class RetrievalProbe:
    """Recall@1 in both directions among the first held-out pairs, with one caption each.

    An image with an equal caption also counts as correct.
    """

    def __init__(
        self,
        rows: "datasets.Dataset | datasets.IterableDataset",
        data: CaptionArguments,
        transform: ImageTransform,
        tokenizer: "DinoTxtTokenizer",
    ):
        image_name = find_image_column(rows, data.image_column)
        columns = find_caption_columns(rows, data.caption_columns)
        pixels, captions = [], []
        for row in itertools.islice(rows, data.probe_images):
            try:
                text = read_captions(row, columns)[0]
                pixels.append(transform(decode_image(row[image_name])))
                captions.append(text)
            except BadImage:
                continue
        if len(pixels) < 2:
            raise Refused(f"probe_data: got {len(pixels)} pairs that can be used, accepted: at least 2")
        self.pixels = torch.stack(pixels)
        self.input_ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        self.same = torch.tensor([[first == second for second in captions] for first in captions])

    @torch.no_grad()
    def __call__(self, model: DinoTxtModel) -> dict[str, float]:
        """Return image_to_text and text_to_image recall@1 (0..1), evaluated in eval mode; the mode is restored."""
        device, training = next(model.parameters()).device, {module: module.training for module in model.modules()}
        images, texts = [], []
        model.eval()
        for pixels, ids in zip(self.pixels.split(BATCH_SIZE), self.input_ids.split(BATCH_SIZE), strict=True):
            # One call for images and texts, because a sharded model must be called as a whole.
            output = model(input_ids=ids.to(device), pixel_values=pixels.to(device))
            images.append(output.image_embeds.float().cpu())
            texts.append(output.text_embeds.float().cpu())
        for module, mode in training.items():
            module.training = mode
        similarities = normalize(torch.cat(images), dim=-1) @ normalize(torch.cat(texts), dim=-1).T
        rows = torch.arange(len(similarities))
        return {
            "image_to_text": self.same[rows, similarities.argmax(dim=1)].double().mean().item(),
            "text_to_image": self.same[rows, similarities.argmax(dim=0)].double().mean().item(),
        }
