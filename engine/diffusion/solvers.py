"""Solvers as tables of coefficients: one affine update of the whole canvas a level.

    x' = a x + b clipped + e denoised + sum_i history_i kept_i + d noise

``denoised`` is the fused estimate of the clean canvas, ``clipped`` the same after the model's clipping (equal
where it does not clip), and ``kept_i`` what levels before have kept, the newest first: the estimate itself, or the
noise that it implies. Tables are float64. Where the model learned its variance, d is computed for every latent from the
network's prediction of it.
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
        history: Factors of what levels before have kept, the newest first.
        keeps: Factors of x and ``denoised`` in what this level keeps; None: it keeps nothing.
        depth: How much of what was kept, this level's included, the levels after it still read.
    """

    a: float
    b: float
    d: float = 0.0
    e: float = 0.0
    log_variance: tuple[float, float] | None = None
    history: tuple[float, ...] = ()
    keeps: tuple[float, float] | None = None
    depth: int = 0


def ddim(
    alpha_bar: Sequence[float],
    eta: float,
    rederive_noise: bool = False,
    betas: Sequence[float] | None = None,
    final: float = 1.0,
) -> list[Step]:
    """Song et al. 2021, arXiv:2010.02502, eq. 12, for any eta >= 0.

    Args:
        alpha_bar: alpha_bar of each level, noisiest first.
        rederive_noise: Take the noise from the clipped estimate rather than from the estimate itself.
        betas: beta of each level's own timestep. Where it is given, the variance of the fresh noise is that of one
            timestep however far the level goes, and ``eta`` multiplies the variance (Graikos et al. 2024); else
            ``eta`` multiplies the std of the posterior's.
        final: alpha_bar after the last level.
    """
    table = []
    for level, (now, after) in enumerate(_pairs(alpha_bar, final)):
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
            table[-1] = replace(table[-1], keeps=(0.0, 1.0), depth=1)
        history = (float(-gain * extra),) if table else ()
        table.append(_step(np.sqrt((1 - after) / (1 - now)), gain * (1 + extra), history=history))
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


ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(alpha_bar: Sequence[float], final: float = 1.0) -> list[Step]:
    """Pseudo linear multistep, DDIM with the noise of up to four levels (Liu et al. 2022, arXiv:2202.09778, eq. 12).

    As latent diffusion starts it: the first step is taken twice, the second time with the mean of the noise at its two
    ends, so that the second timestep is asked at twice (``asked_at``); then with the noise of two levels, three, and
    four. The estimate is not clipped.

    Args:
        alpha_bar: alpha_bar of each level, the second one twice.
        final: alpha_bar after the last level.
    """
    pairs = _pairs(alpha_bar, final)
    table: list[Step] = []
    for level, (now, after) in enumerate(pairs):
        noise = 1 / np.sqrt(1 - now), -np.sqrt(now / (1 - now))  # factors of x and the estimate in the noise
        if level == 1:  # the canvas has gone with the noise of the first level: it goes back with half of it
            half = _from_noise(*pairs[0]) / 2
            table.append(_step(1 + half * noise[0], 0.0, e=half * noise[1], history=(float(-half),), depth=1))
            continue
        order = ADAMS_BASHFORTH[min(max(level - 1, 0), 3)]
        gain, own = _from_noise(now, after), order[0]
        step = _step(np.sqrt(after / now) + gain * own * noise[0], 0.0, e=gain * own * noise[1])
        history = tuple(float(gain * factor) for factor in order[1:])
        left = len(alpha_bar) - 1 - level
        depth = 0 if not left else min(max(level, 1), 3)
        table.append(
            replace(step, history=history, keeps=(float(noise[0]), float(noise[1])) if left else None, depth=depth)
        )
    return table


def asked_at(solver: str, timesteps: np.ndarray) -> np.ndarray:
    """The timestep of each level of a solver: plms has two levels at the second, where there is one.

    >>> asked_at("plms", np.array([751, 501, 251, 1])).tolist()
    [751, 501, 501, 251, 1]
    """
    return np.insert(timesteps, 1, timesteps[1]) if solver == "plms" and len(timesteps) > 1 else timesteps


def steps_of(
    solver: str,
    alpha_bar: Sequence[float],
    eta: float,
    rederive_noise: bool,
    variance: str = "fixed_small",
    betas: Sequence[float] | None = None,
    final: float = 1.0,
) -> list[Step]:
    """The table of a solver by its name.

    Args:
        alpha_bar: alpha_bar of each of the levels of ``asked_at``, noisiest first.
        variance: Variance of the noise of ddpm.
        betas: beta of each level's own timestep, where these make the noise of ddim; see ``ddim``.
        final: alpha_bar after the last level of ddim and plms; the others end at 1.
    Raises:
        ValueError: The solver is unknown, or has no use for eta.
    """
    if solver == "ddim":
        return ddim(alpha_bar, eta, rederive_noise, betas, final)
    if solver not in SOLVERS:
        raise ValueError(f"`solver` is {solver!r}; known: {', '.join(SOLVERS)}")
    if eta:
        raise ValueError(
            f"`eta` is {eta:g} but `solver` {solver} has no such setting; use `solver` ddim, or leave `eta` out"
        )
    if solver == "ddpm":
        return ddpm(alpha_bar, variance)
    if solver == "plms":
        return plms(alpha_bar, final)
    return {"dpmpp2m": dpmpp2m, "euler": euler}[solver](alpha_bar)


def _pairs(alpha_bar: Sequence[float], final: float = 1.0) -> list[tuple[float, float]]:
    """alpha_bar before and after each level; after the last it is ``final``."""
    return list(zip(alpha_bar, [*alpha_bar[1:], final], strict=True))


def _from_noise(now: float, after: float) -> float:
    """The factor of the noise in a step of DDIM from alpha_bar ``now`` to ``after``."""
    return float(np.sqrt(1 - after) - np.sqrt(after / now) * np.sqrt(1 - now))


def _log_snr(alpha_bar: float) -> float:
    return float(0.5 * np.log(alpha_bar / (1 - alpha_bar)))


def _step(a, b, d=0.0, e=0.0, history=(), depth=0) -> Step:
    return Step(float(a), float(b), float(d), float(e), history=history, depth=depth)
