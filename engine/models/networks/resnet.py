"""The residual network that classifies grey tissue, and whose features a diffusion network is aligned with.

ResNet-50 (He et al. 2015, arXiv:1512.03385) with the stride in the 3 x 3 convolutions and the names of torchvision's
weights, so that these load as they are.

Shape suffixes: B batch, C channels, h w pixels, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4  # of a block's features by its last convolution


class BatchNorm(nn.Module):
    """Batch normalisation over all ranks' parts of a batch.

    Args:
        features: Number of channels.

    Attributes:
        total: Function that sums a float64 vector over the ranks, and its gradient too; None: the batch is all here.
        momentum: Share of a batch in the running averages.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.total: Callable[[Tensor], Tensor] | None = None
        self.momentum, self.eps = 0.1, 1e-5

    def forward(self, x_BChw: Tensor) -> Tensor:
        if self.training and self.total is not None:
            return self.over_ranks(x_BChw.float(), self.total)
        return F.batch_norm(
            x_BChw,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )

    def over_ranks(self, x: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Normalise by the mean and variance of the whole batch. Collective."""
        here = x.numel() // x.shape[1]
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        var, mean = var.double(), mean.double()
        sums = total(torch.cat([mean * here, (var + mean**2) * here, mean.new_full((1,), here)]))
        count = float(sums[-1].detach())
        mean, square = (sums[:-1] / count).chunk(2)
        var = square - mean**2
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * count / max(count - 1, 1)).to(self.running_var), self.momentum)
        scale = self.weight / (var + self.eps).sqrt().to(x)
        shift = self.bias - mean.to(x) * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside what came in."""

    def __init__(self, entry: int, width: int, stride: int) -> None:
        super().__init__()
        leaves = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(entry, width, 1, bias=False), BatchNorm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), BatchNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, leaves, 1, bias=False), BatchNorm(leaves)
        self.downsample: nn.Module | None = None
        if stride > 1 or entry != leaves:
            self.downsample = nn.Sequential(nn.Conv2d(entry, leaves, 1, stride, bias=False), BatchNorm(leaves))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A residual network with a head of two layers.

    Args:
        channels: Number of channels of a picture.
        classes: Number of classes.
        width: Number of features at a quarter of the size; it doubles with each halving.
        depths: Number of blocks at each size.
        hidden: Number of features between the head's layers.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 8,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 6, 3),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels,
            "classes": classes,
            "width": width,
            "depths": list(depths),
            "hidden": hidden,
        }
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False), BatchNorm(width)
        entry = width
        for level, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(Bottleneck(entry, width << level, 2 if level and not index else 1))
                entry = EXPANSION * (width << level)
            setattr(self, f"layer{level + 1}", nn.Sequential(*blocks))
        self.width = entry
        self.fc = nn.Sequential(nn.Linear(entry, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x_BChw: Tensor) -> Tensor:
        """(B, F): what the head classifies."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x_BChw))), 3, 2, 1)
        for level in range(len(self.config["depths"])):
            x = getattr(self, f"layer{level + 1}")(x)
        return x.mean((2, 3))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, K): the logits of the classes."""
        return self.fc(self.features(x_BChw))


def sum_over(network: nn.Module, total: Callable[[Tensor], Tensor] | None) -> None:
    """Let a network normalise batches whose parts lie on several ranks; see ``BatchNorm.total``."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.total = total


def settings_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of the ResNet that its weights imply.

    Raises:
        ValueError: they are those of another network.
    """
    levels = [key.split(".")[0] for key in tensors if key.startswith("layer") and key.endswith(".0.conv3.weight")]
    if "conv1.weight" not in tensors or not levels:
        raise ValueError("these are no weights of a ResNet-50 by torchvision's names")
    count = {level: {key.split(".")[1] for key in tensors if key.startswith(f"{level}.")} for level in sorted(levels)}
    settings = {
        "channels": tensors["conv1.weight"].shape[1],
        "width": tensors["conv1.weight"].shape[0],
        "depths": [len(blocks) for blocks in count.values()],
    }
    if "fc.2.weight" in tensors:
        settings |= {"hidden": tensors["fc.2.weight"].shape[1], "classes": tensors["fc.2.weight"].shape[0]}
    return settings
