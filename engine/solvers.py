"""Solvers as tables of coefficients: one affine update of the whole canvas a level.

    x' = a x + b clipped + e denoised + c denoised_prev + d noise

``denoised`` is the fused estimate of the clean canvas, ``clipped`` the same after the model's clipping (equal
where it does not clip) and ``denoised_prev`` that of the level before. Tables are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Step:
    """The coefficients of one level; see the head of this file."""

    a: float
    b: float
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0


def ddim(alpha_bar: Sequence[float], eta: float, rederive_noise: bool = False) -> list[Step]:
    """Song et al. 2021, arXiv:2010.02502, eq. 12, for any eta >= 0; the last level goes to alpha_bar 1.

    Args:
        alpha_bar: of the levels, noisiest first.
        rederive_noise: take the noise from the clipped estimate rather than from the estimate itself.
    """
    table = []
    for now, after in _pairs(alpha_bar):
        sigma = eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
        noise = np.sqrt(max(1 - after - sigma**2, 0.0) / (1 - now))
        from_noise = -noise * np.sqrt(now)
        signal = np.sqrt(after)
        b, e = (signal + from_noise, 0.0) if rederive_noise else (signal, from_noise)
        table.append(_step(noise, b, d=sigma, e=e))
    return table


def ddpm(alpha_bar: Sequence[float]) -> list[Step]:
    """Ancestral sampling with the posterior variance (Ho et al. 2020, arXiv:2006.11239, eq. 7), respaced."""
    table = []
    for now, after in _pairs(alpha_bar):
        alpha = now / after
        b = np.sqrt(after) * (1 - alpha) / (1 - now)
        a = np.sqrt(alpha) * (1 - after) / (1 - now)
        table.append(_step(a, b, d=np.sqrt((1 - after) / (1 - now) * (1 - alpha))))
    return table


def dpmpp2m(alpha_bar: Sequence[float]) -> list[Step]:
    """DPM-Solver++ 2M, midpoint (Lu et al. 2022, arXiv:2211.01095, alg. 2); first and last level of first order."""
    table: list[Step] = []
    h_before = 0.0
    for now, after in _pairs(alpha_bar):
        if after == 1.0:  # the noise ends: the update tends to the estimate itself
            table.append(_step(0.0, 1.0))
            break
        h = _log_snr(after) - _log_snr(now)
        gain = -np.sqrt(after) * np.expm1(-h)
        extra = h / (2 * h_before) if table else 0.0
        table.append(_step(np.sqrt((1 - after) / (1 - now)), gain * (1 + extra), c=-gain * extra))
        h_before = h
    return table


def euler(alpha_bar: Sequence[float]) -> list[Step]:
    """Euler's method on the probability flow of x / sqrt(alpha_bar) over sigma (Karras et al. 2022, alg. 1).

    The same update as DDIM with eta 0, noise re-derived.
    """
    table = []
    for now, after in _pairs(alpha_bar):
        ratio = np.sqrt((1 - after) / after) / np.sqrt((1 - now) / now)
        table.append(_step(np.sqrt(after / now) * ratio, np.sqrt(after) * (1 - ratio)))
    return table


SOLVERS = ("ddim", "ddpm", "dpmpp2m", "euler")


def steps_of(solver: str, alpha_bar: Sequence[float], eta: float, rederive_noise: bool) -> list[Step]:
    """The table of a solver by its name.

    Raises:
        ValueError: an unknown solver, or an eta that it has no use for.
    """
    if solver == "ddim":
        return ddim(alpha_bar, eta, rederive_noise)
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; known: {', '.join(SOLVERS)}")
    if eta:
        raise ValueError(f"eta is {eta} but solver {solver} has no such setting; use --solver ddim, or leave --eta out")
    return {"ddpm": ddpm, "dpmpp2m": dpmpp2m, "euler": euler}[solver](alpha_bar)


def _pairs(alpha_bar: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(alpha_bar, [*alpha_bar[1:], 1.0], strict=True))


def _log_snr(alpha_bar: float) -> float:
    return float(0.5 * np.log(alpha_bar / (1 - alpha_bar)))


def _step(a, b, c=0.0, d=0.0, e=0.0) -> Step:
    return Step(float(a), float(b), float(c), float(d), float(e))
