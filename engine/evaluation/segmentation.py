"""A small segmentation U-Net (Ronneberger et al. 2015, arXiv:1505.04597), trained and tested on crops with label maps.

Every gradient is that of one window, and those of a step are added in one order: the weights are the same bytes on any
number of ranks. Shape suffixes: B windows, K labels, h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.distributed.ranks import Ranks
from engine.evaluation.crops import Crops, share
from engine.planning.names import LARGEST_LABEL
from engine.training.data import number_at

WIDTHS = (16, 48, 96)
STEM = 4  # px a side of what the first layer sees as one
MULTIPLE = STEM * 2 ** (len(WIDTHS) - 1)  # px; sides of images are filled up to it
LIGHT, SPREAD = 0.7, 0.2  # of stained tissue, about, where white is 1
MOST_LABELS = LARGEST_LABEL + 1
CACHE = 2**28  # bytes of crops that a training keeps


class PixelNorm(nn.Module):
    """Each pixel's channels over their root mean square (Karras et al. 2018, arXiv:1710.10196, 4.2), with a gain.

    Normalised over a window, as GroupNorm does it, windows of one label lose the colour that tells which: on 30 tiles
    of DiffInfinite's 200 steps taught nothing (mean IoU 0.12), and with this 120 do (0.25).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * self.gain


def layer(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), PixelNorm(width), nn.SiLU())


def two_layers(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(layer(inputs, width), layer(width, width))


class Segmenter(nn.Module):
    """Pixels (B, 3, h, w) to logits (B, K, h, w); h and w are multiples of ``MULTIPLE``.

    It has 228,000 weights, and sees pixels in squares of 4: logits are interpolated between these.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.stem = nn.Conv2d(3, a, STEM, STEM)
        self.down = nn.ModuleList([layer(a, a), two_layers(a, b), two_layers(b, c)])
        self.narrow = nn.ModuleList([nn.Conv2d(b, a, 1), nn.Conv2d(c, b, 1)])
        self.up = nn.ModuleList([layer(2 * a, a), two_layers(2 * b, b)])
        self.head = nn.Conv2d(a, labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, x, skips = x.shape[-2:], self.stem(x), []
        for depth, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if depth else x)
            skips.append(x)
        for depth in (1, 0):
            wider = F.interpolate(self.narrow[depth](x), scale_factor=2.0)
            x = self.up[depth](torch.cat([skips[depth], wider], 1))
        return F.interpolate(self.head(x), size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        steps: Optimiser steps.
        batch: Windows a step, over all ranks.
        window: Greatest side of a window, px.
        rate: Greatest learning rate; it rises over the first tenth of the steps, then falls to 0 as a cosine.
        ignored: Label of pixels that say nothing, such as unknown ones; -1: there is none.
    """

    steps: int
    seed: int
    ignored: int = -1
    batch: int = 8
    window: int = 256
    rate: float = 3e-3

    def rate_at(self, step: int) -> float:
        """The learning rate of a step.

        >>> [round(Training(20, 0, rate=1.0).rate_at(step), 2) for step in (0, 1, 10, 19)]
        [0.33, 0.66, 0.5, 0.01]
        """
        rise, fall = (step + 1) / (1 + self.steps // 10), 0.5 + 0.5 * math.cos(math.pi * step / self.steps)
        return self.rate * min(rise, 1.0) * fall


@dataclass(frozen=True)
class Pool:
    """Crops of several sets as one; those that were read last are kept, up to ``CACHE`` bytes."""

    sets: tuple[Crops, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @cached_property
    def read(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Function of a crop's number: pixels uint8 (side, side, 3) and labels uint8 (side, side).

        Raises:
            ValueError: the crop has no label map.
        """
        return lru_cache(max(CACHE // (4 * self.sets[0].side ** 2), 1))(self._read)

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        for crops in self.sets:
            if number < len(crops):
                break
            number -= len(crops)
        return crops.read(number), labels_of(crops, number)


def training_bytes(side: int) -> int:
    """Bytes that a training holds at most: crops of a side, px, and one gradient a window."""
    weights = sum(parameter.numel() for parameter in Segmenter(MOST_LABELS).parameters())
    return max(CACHE, 4 * side**2) + Training(1, 0).batch * weights * 4


def labels_of(crops: Crops, number: int) -> np.ndarray:
    """uint8 (side, side).

    Raises:
        ValueError: the crop has no label map, or not of labels.
    """
    labels = crops.labels(number)
    if labels is None:
        raise ValueError(f"{crops.named(number)} has no label map; give each image one, as NAME_mask.png beside it")
    if labels.min() < 0 or labels.max() >= MOST_LABELS:
        raise ValueError(
            f"{crops.named(number)} has label {labels.max()}; give maps of classes, of which there are at most "
            f"{MOST_LABELS}"
        )
    return labels.astype(np.uint8)


def trained(ranks: Ranks, pool: Pool, labels: int, how: Training, device: str) -> Segmenter:
    """A network trained on crops. Collective; the same on every rank."""
    torch.manual_seed(how.seed)
    network = Segmenter(labels).to(device)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=how.rate, weight_decay=1e-4)
    own = share(how.batch, ranks.rank, ranks.size)
    for step in range(how.steps):
        windows = ranks.agree(lambda step=step: [window_of(pool, how, step * how.batch + n) for n in own])  # type: ignore[misc]
        gradients = np.zeros((how.batch, sum(p.numel() for p in parameters)), np.float32)
        for place, (pixels, wanted) in zip(own, windows, strict=True):
            logits, truth = network(as_input(pixels, device)), torch.from_numpy(wanted[None]).to(device)
            loss = F.cross_entropy(logits, truth, ignore_index=how.ignored, reduction="sum") / truth.numel()
            made = torch.autograd.grad(loss / how.batch, parameters)
            gradients[place] = torch.cat([gradient.flatten() for gradient in made]).cpu().numpy()
        ranks.allreduce_array(gradients)  # exact: all but one rank add zeros
        put_gradients(parameters, torch.from_numpy(gradients.sum(0)))
        optimizer.param_groups[0]["lr"] = how.rate_at(step)
        optimizer.step()
    return network.eval()


def put_gradients(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Cut gradients (P,) into those of each parameter."""
    parts = flat.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter)


def window_of(pool: Pool, how: Training, position: int) -> tuple[np.ndarray, np.ndarray]:
    """The window that a position of a training sees: pixels uint8 (n, n, 3) and labels int64 (n, n).

    Every epoch visits each crop once; windows are drawn evenly, flipped and turned.
    """
    pixels, labels = pool.read(number_at(position, len(pool), how.seed))
    side = min(how.window, len(labels) // MULTIPLE * MULTIPLE)
    rng = np.random.default_rng((how.seed, 23, position))
    y, x = (int(start) for start in rng.integers(len(labels) - side + 1, size=2))
    turns, flipped = int(rng.integers(4)), bool(rng.integers(2))
    parts = (array[y : y + side, x : x + side] for array in (pixels, labels))
    turned = (np.rot90(part[::-1] if flipped else part, turns) for part in parts)
    seen, wanted = (np.array(part) for part in turned)
    return seen, wanted.astype(np.int64)


def as_input(pixels: np.ndarray, device: str) -> Tensor:
    """float32 (1, 3, h, w), about 0 and 1 in spread, of uint8 (h, w, 3)."""
    return (torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 255 - LIGHT) / SPREAD


def confusion(
    ranks: Ranks, network: Segmenter, crops: Crops, labels: int, device: str, ignored: int = -1
) -> np.ndarray:
    """int64 (K, K): pixels of crops by their label and by that which the network gives them. Collective.

    Args:
        ignored: Label of pixels that do not count, which none is given either; -1: there is none.
    """
    known = torch.arange(labels, device=device) != ignored

    @torch.inference_mode()
    def own() -> np.ndarray:
        counts = np.zeros((labels, labels), np.int64)
        for number in share(len(crops), ranks.rank, ranks.size):
            truth, pixels = labels_of(crops, number).astype(np.int64), np.array(crops.read(number))
            fill = -len(truth) % MULTIPLE
            x = F.pad(as_input(pixels, device), (0, fill, 0, fill), mode="replicate")
            logits = network(x)[0].masked_fill(~known[:, None, None], -torch.inf)
            given = logits.argmax(0).cpu().numpy()[: len(truth), : len(truth)]
            pairs = (truth * labels + given)[truth != ignored]
            counts += np.bincount(pairs, minlength=labels**2).reshape(labels, labels)
        return counts

    counts = ranks.agree(own)
    ranks.allreduce_array(counts)
    return counts


def overlaps(confusion: np.ndarray) -> np.ndarray:
    """float64 (K,): intersection over union of each label; NaN where neither the map nor the network has it.

    >>> overlaps(np.array([[6, 2, 0], [0, 8, 0], [0, 0, 0]])).tolist()
    [0.75, 0.8, nan]
    """
    both = np.diag(confusion).astype(np.float64)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)
