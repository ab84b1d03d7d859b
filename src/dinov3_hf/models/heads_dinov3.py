"""Projection head of the self-supervised objectives."""

import torch
from torch import nn


class Dinov3ProjectionHead(nn.Module):
    """MLP to a bottleneck, L2 normalisation, then a bias-free linear layer to K prototypes (DINOv3, section 3.1).

    Args:
        num_layers: number of linear layers of the MLP, with GELU between them; at least 1.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bottleneck_size: int, num_prototypes: int, num_layers: int = 3
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} must be at least 1")
        sizes = [input_size] + [hidden_size] * (num_layers - 1) + [bottleneck_size]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = nn.Linear(bottleneck_size, num_prototypes, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [N,D] to logits [N,K]."""
        # Half precision cannot hold the epsilon, hence the norm in fp32.
        bottleneck = self.mlp(features)
        bottleneck = nn.functional.normalize(bottleneck.float(), dim=-1, eps=1e-12).to(bottleneck.dtype)
        return self.last_layer(bottleneck)


__all__ = ["Dinov3ProjectionHead"]
