"""What the kernels take besides tensors: plain values, shared by the torch and the Triton versions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Lines:
    """Weights as products of two lines.

    Args:
        rows, columns: float32 (R, p) and (K, p), on the device of the estimates.
        which: int64 (n, 2) on the CPU, the row and the column of each window.
    """

    rows: Tensor
    columns: Tensor
    which: Tensor


@dataclass(frozen=True)
class Winner:
    """Weight 1 where a latent belongs to a window, else 0.

    Args:
        field: int32 (h, w), whom each latent of the box belongs to, on the device of the estimates.
        number: int64 (n,) on the CPU, by which number ``field`` speaks of each window.
    """

    field: Tensor
    number: Tensor


Weights = Lines | Winner | None


@dataclass(frozen=True)
class Field:
    """The noise of one purpose and level over the unbounded plane, seen from (y0, x0) on; see ``standard_normal``."""

    seed: int
    purpose: str
    level: int
    y0: int = 0
    x0: int = 0


@dataclass(frozen=True)
class Guidance:
    """What is asked for at each latent, guided by its label's weight: null + w (conditional - null).

    Args:
        conditional: float32, as the estimate, which is then that of null.
        labels: uint8 (h, w).
        weights: float32 (labels,), w of each label; 0 where there is only null, 1 for the conditional alone.
    """

    conditional: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Rule:
    """What a level does to every latent; see ``engine.diffusion.solvers``.

    Args:
        coefficients: (a, b, c, d, e).
        clip: of the estimate, for b; None: it is not clipped.
        log_variance: least and most of the noise, where the network says where between the two it lies, in place of d.
        noise: the field that is drawn from, from the canvas's corner on; None where d is 0.
        keep: hand back the estimate as the next level's history.
    """

    coefficients: tuple[float, float, float, float, float]
    clip: float | None = None
    log_variance: tuple[float, float] | None = None
    noise: Field | None = None
    keep: bool = False
