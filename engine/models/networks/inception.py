"""The Inception network of the Frechet inception distance: the one of 2015-12-05 that TensorFlow published, ported.

Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) as Heusel et al. 2017 (arXiv:1706.08500) compare images by it. It
differs from torchvision's: its average pools do not count the padding, the last block has a maximum pool in its place,
it knows 1008 classes, and pictures are resized as TensorFlow 1 does and mapped by (x - 128) / 128.

The names are those of torchvision's ``inception_v3``. Both files that are in use have them, torch-fidelity's ``weights-
inception-2015-12-05-6726825d.pth`` and pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``: each project loads its
own strictly into a network of these names, and both end in the same first digits of the file's sha256.

Shape suffixes: B batch, C channels, h w pixels, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299  # px of the network's input
FEATURES, CLASSES = 2048, 1008
# pytorch-fid's own class, which holds the same parts in four runs; a saved one has no head.
BLOCKS = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


@dataclass(frozen=True)
class Branch:
    """Convolutions one after the other, one of the branches of a block.

    Args:
        name: Name of their weights; several are numbered from 1.
        widths: Features of each.
        kernels: Height and width of each.
        stride: Of the last.
        fork: Whether the last two lie side by side behind the others, and both go on.
    """

    name: str
    widths: Sequence[int]
    kernels: Sequence[tuple[int, int]]
    stride: int = 1
    fork: bool = False

    def names(self) -> list[str]:
        """
        >>> Branch("b", (1, 1, 1), ((1, 1),) * 3, fork=True).names()
        ['b_1', 'b_2a', 'b_2b']
        """
        count = len(self.widths)
        if count == 1:
            return [self.name]
        if self.fork:
            return [f"{self.name}_{n}" for n in [*range(1, count - 1), f"{count - 1}a", f"{count - 1}b"]]
        return [f"{self.name}_{n}" for n in range(1, count + 1)]


class Conv(nn.Module):
    """A convolution without bias, batch normalisation and a rectifier."""

    def __init__(self, entry: int, leaves: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(entry, leaves, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(leaves, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches beside one another, and a pool.

    Args:
        entry: Number of features that come in.
        pooled: Features of the convolution behind the pool; 0: there is none, and the pool halves the size.
        largest: Whether a pool that keeps the size takes the maximum, not the mean.
    """

    def __init__(self, entry: int, branches: Sequence[Branch], pooled: int = 0, largest: bool = False) -> None:
        super().__init__()
        self.branches, self.largest, self.pooled = branches, largest, pooled
        for branch in branches:
            width, names = entry, branch.names()
            for number, (name, leaves, kernel) in enumerate(zip(names, branch.widths, branch.kernels, strict=True)):
                stride = branch.stride if number == len(names) - 1 else 1
                setattr(self, name, Conv(width, leaves, kernel, stride, pad=stride == 1))
                width = width if branch.fork and number == len(names) - 2 else leaves
        if pooled:
            self.branch_pool = Conv(entry, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(part for branch in self.branches for part in self.of_branch(branch, x)), self.pool(x)], 1)

    def of_branch(self, branch: Branch, x: Tensor) -> list[Tensor]:
        convs = [getattr(self, name) for name in branch.names()]
        last = 2 if branch.fork else 1
        for conv in convs[:-last]:
            x = conv(x)
        return [conv(x) for conv in convs[-last:]]

    def pool(self, x: Tensor) -> Tensor:
        if not self.pooled:
            return F.max_pool2d(x, 3, 2)
        if self.largest:
            return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def block_a(entry: int, pooled: int) -> Mixed:
    branches = (
        Branch("branch1x1", (64,), ((1, 1),)),
        Branch("branch5x5", (48, 64), ((1, 1), (5, 5))),
        Branch("branch3x3dbl", (64, 96, 96), ((1, 1), (3, 3), (3, 3))),
    )
    return Mixed(entry, branches, pooled)


def block_b(entry: int) -> Mixed:
    branches = (
        Branch("branch3x3", (384,), ((3, 3),), 2),
        Branch("branch3x3dbl", (64, 96, 96), ((1, 1), (3, 3), (3, 3)), 2),
    )
    return Mixed(entry, branches)


def block_c(entry: int, width: int) -> Mixed:
    across, down = (1, 7), (7, 1)
    branches = (
        Branch("branch1x1", (192,), ((1, 1),)),
        Branch("branch7x7", (width, width, 192), ((1, 1), across, down)),
        Branch("branch7x7dbl", (*[width] * 4, 192), ((1, 1), down, across, down, across)),
    )
    return Mixed(entry, branches, 192)


def block_d(entry: int) -> Mixed:
    branches = (
        Branch("branch3x3", (192, 320), ((1, 1), (3, 3)), 2),
        Branch("branch7x7x3", (192, 192, 192, 192), ((1, 1), (1, 7), (7, 1), (3, 3)), 2),
    )
    return Mixed(entry, branches)


def block_e(entry: int, largest: bool) -> Mixed:
    across, down = (1, 3), (3, 1)
    branches = (
        Branch("branch1x1", (320,), ((1, 1),)),
        Branch("branch3x3", (384, 384, 384), ((1, 1), across, down), fork=True),
        Branch("branch3x3dbl", (448, 384, 384, 384), ((1, 1), (3, 3), across, down), fork=True),
    )
    return Mixed(entry, branches, 192, largest)


class FidInception(nn.Module):
    """Pictures to 2048 features and the logits of 1008 classes."""

    def __init__(self) -> None:
        super().__init__()
        three = (3, 3)
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, three, 2, False), Conv(32, 32, three, 1, False)
        self.Conv2d_2b_3x3 = Conv(32, 64, three)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, (1, 1)), Conv(80, 192, three, 1, False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a, self.Mixed_6b = block_b(288), block_c(768, 128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = block_c(768, 160), block_c(768, 160), block_c(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = block_d(768), block_e(1280, False), block_e(2048, True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def features(self, pixels_B3hw: Tensor) -> Tensor:
        """(B, F): the means over space of the last block, of pixels 0 to 255 of any size."""
        x = (resized_as_tensorflow(pixels_B3hw.float(), SIDE) - 128) / 128
        for number, names in enumerate(BLOCKS):
            for name in names:
                x = getattr(self, name)(x)
            x = F.max_pool2d(x, 3, 2) if number < 2 else x
        return x.mean((2, 3))

    def unbiased_logits(self, features_BF: Tensor) -> Tensor:
        """(B, K): the logits without the head's bias, which the Inception Score is made of."""
        return features_BF @ self.fc.weight.T

    def forward(self, pixels_B3hw: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) and (B, K): features and unbiased logits."""
        features = self.features(pixels_B3hw)
        return features, self.unbiased_logits(features)


def resized_as_tensorflow(x_BChw: Tensor, side: int) -> Tensor:
    """(B, C, side, side): bilinear, with pixels at their corners and no smoothing, as TensorFlow 1 resizes.

    >>> resized_as_tensorflow(torch.arange(4.0).reshape(1, 1, 2, 2), 4)[0, 0, 1].tolist()
    [1.0, 1.5, 2.0, 2.0]
    """
    for axis in (-2, -1):
        length = x_BChw.shape[axis]
        at = torch.arange(side, dtype=x_BChw.dtype, device=x_BChw.device) * torch.tensor(length / side)
        low = at.long()
        between = at - low if axis == -1 else (at - low)[:, None]
        a, b = x_BChw.index_select(axis, low), x_BChw.index_select(axis, (low + 1).clamp_max(length - 1))
        x_BChw = a + (b - a) * between
    return x_BChw


def by_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by torchvision's names, also those of pytorch-fid's own class (``blocks.0.0.conv.weight``).

    >>> list(by_our_names({"blocks.2.3.branch3x3.conv.weight": torch.zeros(1)}))
    ['Mixed_6a.branch3x3.conv.weight']
    """
    renamed = {}
    for key, tensor in tensors.items():
        parts = key.split(".")
        if parts[0] == "blocks" and len(parts) > 3:
            parts = [BLOCKS[int(parts[1])][int(parts[2])], *parts[3:]]
        if parts[-1] != "num_batches_tracked":
            renamed[".".join(parts)] = tensor
    return renamed
