"""What the kernels take besides tensors: plain values, shared by the torch and the Triton versions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SeparableWeights:
    """Weights of windows, each the product of a line down the window and a line across it.

    Args:
        rows: Weight of each row of each window, float32 (n, p) on the device of the estimates.
        columns: Weight of each column of each window, float32 (n, p) on the same device.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class WinnerMap:
    """Weight 1 where a window wins a latent, 0 elsewhere.

    Args:
        winner: Position, among the n windows, of the one that wins each latent of the box; -1 where none does.
            int32 (h, w) on the device of the estimates.
    """

    winner: Tensor


Weights = SeparableWeights | WinnerMap | None  # None: every weight is 1


@dataclass(frozen=True)
class Field:
    """Standard normal noise over the unbounded plane, and the corner of the box that is drawn from it.

    Args:
        seed: Seed of the job, 64 bits.
        purpose: What the noise is for, a key of ``kernels.philox.PURPOSES``; each purpose has its own noise.
        level: Level of the run, 32 bits; each level has its own noise.
        y0: First row of the box, in latents, 64-bit signed.
        x0: First column of the box, in latents, 64-bit signed.
    """

    seed: int
    purpose: str
    level: int
    y0: int = 0
    x0: int = 0


@dataclass(frozen=True)
class Update:
    """The solver's update of one level, the same for every latent; see ``engine.diffusion.solvers``.

    Args:
        coefficients: Factors (a, b, c, d, e) of x, the clipped estimate, the previous estimate, the noise, and the
            estimate as it is.
        clip: Bound of the clipped estimate; None: b multiplies the estimate as it is.
        log_variance: Logarithms of the least and the largest variance, between which the network's variance
            prediction chooses: the noise is then multiplied by the predicted std instead of d. None: by d.
        noise: Noise that is added, from the corner of x on; None where d is 0 and no variance is predicted.
    """

    coefficients: tuple[float, float, float, float, float]
    clip: float | None = None
    log_variance: tuple[float, float] | None = None
    noise: Field | None = None
