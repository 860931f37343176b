"""Solvers as tables of coefficients: one affine update of the whole canvas a level.

    x' = a x + b clipped + e denoised + c denoised_prev + d noise

``denoised`` is the fused estimate of the clean canvas, ``clipped`` the same after the model's clipping (equal
where it does not clip) and ``denoised_prev`` that of the level before. Tables are float64. Where the model learned its
variance, d is computed for every latent from the network's prediction of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.diffusion.names import SOLVERS


@dataclass(frozen=True)
class Step:
    """The coefficients of one level; see the head of this file.

    Args:
        log_variance: Least and most log-variance of the noise, of a model that predicts where between the two it lies;
            d is then that of the least, and not used.
        keeps: Whether the level's estimate is kept, because the next level reads it as ``denoised_prev``.
    """

    a: float
    b: float
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    log_variance: tuple[float, float] | None = None
    keeps: bool = False


def ddim(
    alpha_bar: Sequence[float],
    eta: float,
    rederive_noise: bool = False,
    betas: Sequence[float] | None = None,
) -> list[Step]:
    """Song et al. 2021, arXiv:2010.02502, eq. 12, for any eta >= 0; the last level goes to alpha_bar 1.

    Args:
        alpha_bar: alpha_bar of each level, noisiest first.
        rederive_noise: Take the noise from the clipped estimate rather than from the estimate itself.
        betas: beta of each level's own timestep. Where it is given, the variance of the fresh noise is that of one
            timestep however far the level goes, and ``eta`` multiplies the variance (Graikos et al. 2024); else
            ``eta`` multiplies the std of the posterior's.
    """
    table = []
    for level, (now, after) in enumerate(_pairs(alpha_bar)):
        posterior = (1 - after) / (1 - now)
        if betas is None:
            sigma = eta * np.sqrt(posterior * (1 - now / after))
        else:
            sigma = np.sqrt(eta * posterior * betas[level])
        noise = np.sqrt(max(1 - after - sigma**2, 0.0) / (1 - now))
        from_noise = -noise * np.sqrt(now)
        signal = np.sqrt(after)
        b, e = (signal + from_noise, 0.0) if rederive_noise else (signal, from_noise)
        table.append(_step(noise, b, d=sigma, e=e))
    return table


def inversion(alpha_bar: Sequence[float]) -> list[Step]:
    """DDIM with eta 0 run backwards, from a clean canvas to noise (Dhariwal & Nichol 2021, arXiv:2105.05233, app. F).

    A level asks the network at the timestep that it leads to, which is the one that leads back: the two predictions of
    the noise differ by what the canvas differs, and the error of a round trip falls with the number of levels. The
    estimate is not clipped.

    Args:
        alpha_bar: alpha_bar after each level, cleanest first; before the first it is 1.
    """
    table = []
    for now, after in itertools.pairwise([1.0, *alpha_bar]):
        noise = np.sqrt(1 - after) - np.sqrt(after) * np.sqrt((1 - now) / now)  # factor of the predicted noise
        from_x = noise / np.sqrt(1 - after)
        table.append(_step(np.sqrt(after / now) + from_x, 0.0, e=-from_x * np.sqrt(after)))
    return table


def ddpm(alpha_bar: Sequence[float], variance: str = "fixed_small") -> list[Step]:
    """Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, eq. 7), respaced.

    Args:
        variance: Variance of the noise. ``fixed_small`` is that of the posterior, ``fixed_large`` is beta;
            ``learned_range`` lies between the two where the network predicts it for every latent (Nichol & Dhariwal
            2021, arXiv:2102.09672, eq. 15).
    """
    table = []
    for now, after in _pairs(alpha_bar):
        alpha = now / after
        b = np.sqrt(after) * (1 - alpha) / (1 - now)
        a = np.sqrt(alpha) * (1 - after) / (1 - now)
        small = (1 - after) / (1 - now) * (1 - alpha)
        step = _step(a, b, d=np.sqrt(1 - alpha if variance == "fixed_large" else small))
        if after == 1.0:  # the last level adds no noise
            step = replace(step, d=0.0)
        elif variance == "learned_range":
            step = replace(step, log_variance=(float(np.log(small)), float(np.log(1 - alpha))))
        table.append(step)
    return table


def dpmpp2m(alpha_bar: Sequence[float]) -> list[Step]:
    """DPM-Solver++ 2M, midpoint (Lu et al. 2022, arXiv:2211.01095, alg. 2); first order at the first and last level."""
    table: list[Step] = []
    h_before = 0.0
    for now, after in _pairs(alpha_bar):
        if after == 1.0:  # no noise is left: the update tends to the estimate itself
            table.append(_step(0.0, 1.0))
            break
        h = _log_snr(after) - _log_snr(now)
        gain = -np.sqrt(after) * np.expm1(-h)
        extra = h / (2 * h_before) if table else 0.0
        if table:  # the midpoint reads the estimate of the level before
            table[-1] = replace(table[-1], keeps=True)
        table.append(_step(np.sqrt((1 - after) / (1 - now)), gain * (1 + extra), c=-gain * extra))
        h_before = h
    return table


def euler(alpha_bar: Sequence[float]) -> list[Step]:
    """Euler's method on the probability flow of x / sqrt(alpha_bar) over sigma (Karras et al. 2022, alg. 1).

    In exact arithmetic it is DDIM with eta 0 and re-derived noise; the coefficients differ in their last digits.
    """
    table = []
    for now, after in _pairs(alpha_bar):
        ratio = np.sqrt((1 - after) / after) / np.sqrt((1 - now) / now)
        table.append(_step(np.sqrt(after / now) * ratio, np.sqrt(after) * (1 - ratio)))
    return table


def steps_of(
    solver: str,
    alpha_bar: Sequence[float],
    eta: float,
    rederive_noise: bool,
    variance: str = "fixed_small",
    betas: Sequence[float] | None = None,
) -> list[Step]:
    """The table of a solver by its name.

    Args:
        variance: Variance of the noise of ddpm.
        betas: beta of each level's own timestep, where these make the noise of ddim; see ``ddim``.
    Raises:
        ValueError: The solver is unknown, or has no use for eta.
    """
    if solver == "ddim":
        return ddim(alpha_bar, eta, rederive_noise, betas)
    if solver not in SOLVERS:
        raise ValueError(f"`solver` is {solver!r}; known: {', '.join(SOLVERS)}")
    if eta:
        raise ValueError(
            f"`eta` is {eta:g} but `solver` {solver} has no such setting; use `solver` ddim, or leave `eta` out"
        )
    if solver == "ddpm":
        return ddpm(alpha_bar, variance)
    return {"dpmpp2m": dpmpp2m, "euler": euler}[solver](alpha_bar)


def _pairs(alpha_bar: Sequence[float]) -> list[tuple[float, float]]:
    """alpha_bar before and after each level; after the last it is 1."""
    return list(zip(alpha_bar, [*alpha_bar[1:], 1.0], strict=True))


def _log_snr(alpha_bar: float) -> float:
    return float(0.5 * np.log(alpha_bar / (1 - alpha_bar)))


def _step(a, b, c=0.0, d=0.0, e=0.0) -> Step:
    return Step(float(a), float(b), float(c), float(d), float(e))
