"""The contrastive loss of images and their texts over the global batch (CLIP; DINOv3, section 5.3)."""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from dinov3_hf.training.losses.gather import gather_rows


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Return the mean of the image-to-text and the text-to-image cross-entropy, fp32 [].

    Row i of `image_embeds` [B,E] and row i of `text_embeds` [B,E], both L2-normalised, are a pair; `logit_scale` [] or
    [1] multiplies their cosine similarities. With a process group, each row is compared with the rows of all
    processes; the mean of the processes' losses and gradients equals that of one process with the global batch.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        image_embeds, text_embeds = image_embeds.float(), text_embeds.float()
        images, texts, start = image_embeds, text_embeds, 0
        if group is not None:
            images = gather_rows(image_embeds, group)
            texts = gather_rows(text_embeds, group)
            start = dist.get_rank(group) * len(image_embeds)
        pairs = torch.arange(start, start + len(image_embeds), device=image_embeds.device)
        scale = logit_scale.float()
        image_loss = cross_entropy(scale * image_embeds @ texts.T, pairs)
        text_loss = cross_entropy(scale * text_embeds @ images.T, pairs)
        return (image_loss + text_loss) / 2
