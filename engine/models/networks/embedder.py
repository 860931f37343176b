"""The layers that turn embeddings of a patch and its region into tokens for a network's cross-attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedder(nn.Module):
    """One linear layer for each token.

    Args:
        patch_width: Length of a patch's embedding.
        width: Length of a token.
        region_width: Length of a region's embedding; 0: there is no region, and one token.
        normalize: Whether embeddings are divided by their norm first; zeros, the null, stay zeros.
    """

    def __init__(self, patch_width: int, width: int, region_width: int = 0, normalize: bool = False) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "patch_width": patch_width,
            "width": width,
            "region_width": region_width,
            "normalize": normalize,
        }
        self.patch_fc = nn.Linear(patch_width, width)
        if region_width:
            self.region_fc = nn.Linear(region_width, width)

    def forward(self, patch_BD: Tensor, region_BD: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 or 2, width); without ``region_BD`` the region's embedding is zero."""
        tokens = [self.patch_fc(self.normalized(patch_BD))]
        if self.config["region_width"]:
            if region_BD is None:
                region_BD = patch_BD.new_zeros(len(patch_BD), self.config["region_width"])
            tokens.append(self.region_fc(self.normalized(region_BD)))
        return torch.stack(tokens, 1)

    def normalized(self, embedding: Tensor) -> Tensor:
        return F.normalize(embedding, dim=-1) if self.config["normalize"] else embedding
