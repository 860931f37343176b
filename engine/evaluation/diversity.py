"""How unlike one another the crops of a set are: similarity and perceptual distance of pairs drawn at random.

The same pairs of places are drawn in the reference set: a model that repeats itself has pairs more alike than those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.distributed.ranks import Ranks
from engine.embedding.embedded_features import embedded_network
from engine.evaluation.crops import Crops, share
from engine.evaluation.measures import Measure

PAIRS = 200
BATCH = 8  # pairs at once
WINDOW = 7  # px of SSIM's window
EMBEDDED_SAYS = (
    "Mean distance of pairs by LPIPS's formula on the layers of the embedded autoencoder, all channels alike: no LPIPS."
)
Distance = Callable[[Tensor, Tensor], Tensor]  # of pairs of pictures uint8 (B, 3, h, w) to float64 (B,)


def diversity(
    ranks: Ranks,
    generated: Crops,
    reference: Crops | None,
    pairs: int = PAIRS,
    seed: int = 0,
    lpips: Path | None = None,
    device: str = "cpu",
) -> list[Measure]:
    """Mean SSIM and perceptual distance of pairs of crops, with standard errors. Collective.

    Args:
        reference: None: nothing stands beside it.
        pairs: Number of pairs that are drawn, or all that there are.
        lpips: TorchScript of two batches (B, 3, h, w) in [-1, 1] to distances; None: the embedded autoencoder's layers.
    Raises:
        ValueError: a set has one crop, or the file is no such TorchScript.
    """
    ranks.agree(lambda: check_pairs(generated, reference))
    perceptual = ranks.agree(lambda: layers_distance(device) if lpips is None else scripted_distance(lpips, device))
    name, says = ("perceptual distance", EMBEDDED_SAYS) if lpips is None else ("LPIPS", f"Mean over pairs, by {lpips}.")
    distances = (ssim, perceptual)
    made = means_of_pairs(ranks, generated, distances, pairs, seed)
    beside = means_of_pairs(ranks, reference, distances, pairs, seed) if reference is not None else None
    texts = (
        ("SSIM of pairs", "", "Mean structural similarity of two crops drawn at random: low where they are unlike."),
        (f"{name} of pairs", "", says),
    )
    return [
        Measure("variety", text, value, better, None if beside is None else beside[0][n], error, says=sentence)
        for n, ((text, better, sentence), value, error) in enumerate(zip(texts, *made, strict=True))
    ]


def check_pairs(generated: Crops, reference: Crops | None) -> None:
    """Refuse sets without a pair.

    Raises:
        ValueError: naming one.
    """
    for crops, name in ((generated, "generated"), (reference, "the reference")):
        if crops is not None and len(crops) < 2:
            raise ValueError(f"{name} has {len(crops)} crops and pairs take 2 or more; give more")


def means_of_pairs(
    ranks: Ranks, crops: Crops, distances: Sequence[Distance], pairs: int, seed: int
) -> tuple[list[float], list[float]]:
    """The mean of each distance over pairs, and its standard error. Collective."""
    drawn = pairs_of(len(crops), pairs, seed)
    own = share(len(drawn), ranks.rank, ranks.size)
    sums = np.zeros((2, len(distances)))

    def measure() -> None:
        for first in range(own.start, own.stop, BATCH):
            batch = drawn[first : min(first + BATCH, own.stop)]
            a, b = (torch.from_numpy(np.stack([crops.read(int(n)) for n in side])) for side in batch.T)
            with torch.inference_mode():
                for number, distance in enumerate(distances):
                    values = distance(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)).double().cpu().numpy().reshape(-1)
                    sums[:, number] += values.sum(), (values**2).sum()

    ranks.agree(measure)
    ranks.allreduce_array(sums)
    mean, square = sums / len(drawn)
    error = np.sqrt(np.clip(square - mean**2, 0, None) / max(len(drawn) - 1, 1))
    return mean.tolist(), error.tolist()


def pairs_of(count: int, pairs: int, seed: int) -> np.ndarray:
    """int64 (n, 2): pairs of different crops, each once; all where there are no more.

    >>> pairs_of(3, 10, 0).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    total = count * (count - 1) // 2
    if total <= pairs:
        return np.stack(np.triu_indices(count, 1), 1)
    rng = np.random.default_rng((seed, count, 5))
    drawn: np.ndarray = np.zeros((0, 2), np.int64)
    while len(drawn) < pairs:
        more = np.sort(rng.integers(count, size=(2 * pairs, 2)), axis=1)
        drawn = np.concatenate([drawn, more[more[:, 0] != more[:, 1]]])
        drawn = drawn[np.sort(np.unique(drawn, axis=0, return_index=True)[1])]
    return drawn[:pairs]


def ssim(a_B3hw: Tensor, b_B3hw: Tensor) -> Tensor:
    """float64 (B,): structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) with scikit-image's settings.

    Windows of 7 x 7 px within the picture, sample covariances, a range of 255, the mean over channels.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, 1)

    a, b = a_B3hw.double(), b_B3hw.double()
    ma, mb, unbiased = mean(a), mean(b), WINDOW**2 / (WINDOW**2 - 1)
    va, vb, both = (
        unbiased * (mean(x * y) - mx * my) for x, y, mx, my in ((a, a, ma, ma), (b, b, mb, mb), (a, b, ma, mb))
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return similar.mean((1, 2, 3))


def layers_distance(device: str) -> Distance:
    """LPIPS's formula (Zhang et al. 2018, arXiv:1801.03924) with weights of 1 on the embedded autoencoder's layers.

    At every place of a layer the channels are divided by their length; the squares of the differences are summed over
    channels, their mean over places is taken, and that is summed over layers.
    """
    network = embedded_network(device)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        of_both = (network.layers(x.to(device).float() / 127.5 - 1) for x in (a, b))
        parts = [((unit(p) - unit(q)) ** 2).sum(1).mean((1, 2)) for p, q in zip(*of_both, strict=True)]
        return torch.stack(parts).sum(0)

    return distance


def unit(x_BChw: Tensor) -> Tensor:
    return x_BChw / (x_BChw.square().sum(1, keepdim=True).sqrt() + 1e-10)


def scripted_distance(path: Path, device: str) -> Distance:
    """A distance in TorchScript.

    Raises:
        ValueError: the file is none, or returns something else.
    """
    try:
        network: Any = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # torch raises its own kinds
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"`lpips` {path} is no TorchScript ({why}); save it with torch.jit.save") from None

    def distance(a: Tensor, b: Tensor) -> Tensor:
        try:
            values = network(*(x.to(device).float() / 127.5 - 1 for x in (a, b)))
        except Exception as error:  # somebody else's code
            why = " ".join(str(error).split())[-200:]
            raise ValueError(f"`lpips` {path} failed ({why}); it takes two batches (B, 3, h, w)") from None
        if not isinstance(values, Tensor) or values.numel() != len(a) or not bool(torch.isfinite(values).all()):
            raise ValueError(f"`lpips` {path} does not return a finite distance for each of {len(a)} pairs")
        return values

    return distance
