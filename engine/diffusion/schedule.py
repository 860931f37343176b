"""Noise schedules: betas, alpha_bar, timesteps, and the estimate of the clean canvas from a network's output.

All tables are float64. Names and values of the settings are those of a diffusers ``scheduler_config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.diffusion.names import BETA_SCHEDULES, PREDICTIONS, SPACINGS, VARIANCES

LEAST_SIGNAL = 1e-30  # alpha_bar at the last timestep; denoised estimates are divided by its square root


def betas(kind: str, timesteps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """float64 (timesteps,): ``linear``, ``scaled_linear`` or ``squaredcos_cap_v2`` (Nichol & Dhariwal 2021).

    >>> [round(float(b), 4) for b in betas("linear", 3, 0.1, 0.3)]
    [0.1, 0.2, 0.3]
    """
    if kind == "linear":
        return np.linspace(start, end, timesteps, dtype=np.float64)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, timesteps, dtype=np.float64) ** 2
    if kind == "squaredcos_cap_v2":
        edges = np.arange(timesteps + 1, dtype=np.float64) / timesteps
        curve = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    raise ValueError(f"beta_schedule is {kind!r}; known: {', '.join(BETA_SCHEDULES)}")


@dataclass(frozen=True)
class Schedule:
    """A model's diffusion: its alpha_bar, and what its output means.

    Args:
        alpha_bar: Cumulative product of 1 - beta at each of the model's timesteps.
        prediction: What the network predicts: ``epsilon``, ``sample`` or ``v_prediction``.
        clip: The fused estimate of the clean canvas is clipped to +- this; None: it is not clipped.
        rederive_noise: Whether the noise is computed again from the clipped estimate.
        spacing: How a run's levels are chosen from the timesteps.
        steps_offset: Number added to the timesteps of ``leading``.
        variance: Variance of the ancestral step: the posterior's, beta, or between the two as the network predicts.
    """

    alpha_bar: tuple[float, ...]
    prediction: str = "epsilon"
    clip: float | None = None
    rederive_noise: bool = False
    spacing: str = "leading"
    steps_offset: int = 0
    variance: str = "fixed_small"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction_type is {self.prediction!r}; known: {', '.join(PREDICTIONS)}")
        if self.spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing is {self.spacing!r}; known: {', '.join(SPACINGS)}")
        if self.variance not in VARIANCES:
            raise ValueError(f"variance_type is {self.variance!r}; known: {', '.join(VARIANCES)}")

    @classmethod
    def from_config(cls, config: Mapping) -> Schedule:
        """From the contents of a ``scheduler_config.json``.

        Raises:
            ValueError: a name that is not known, or betas that leave no signal or add no noise.
        """
        trained = config.get("trained_betas")
        table = (
            np.asarray(trained, np.float64)
            if trained is not None
            else betas(
                config.get("beta_schedule", "linear"),
                int(config.get("num_train_timesteps", 1000)),
                config.get("beta_start", 1e-4),
                config.get("beta_end", 0.02),
            )
        )
        if table.ndim != 1 or not len(table) or not ((table > 0) & (table < 1)).all():
            raise ValueError("its betas are not all numbers above 0 and below 1")
        alpha_bar = np.cumprod(1 - table)
        if alpha_bar[-1] < LEAST_SIGNAL:
            raise ValueError("its betas leave no signal at the last timestep, where a run begins")
        return cls(
            alpha_bar=tuple(alpha_bar.tolist()),
            prediction=config.get("prediction_type", "epsilon"),
            clip=float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None,
            rederive_noise=bool(config.get("rederive_noise", False)),
            spacing=config.get("timestep_spacing", "leading"),
            steps_offset=int(config.get("steps_offset", 0)),
            variance=(config.get("variance_type") or "fixed_small").removesuffix("_log"),
        )

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps that the model was trained with."""
        return len(self.alpha_bar)

    def alpha_bars(self, timesteps: Sequence[int] | np.ndarray) -> list[float]:
        """alpha_bar at each of a run's levels."""
        return [self.alpha_bar[t] for t in timesteps]

    def timesteps(self, steps: int) -> np.ndarray:
        """The timesteps of a run, noisiest first.

        Args:
            steps: Number of levels, 1 up to the model's timesteps.
        Raises:
            ValueError: ``steps`` is outside that range.

        >>> Schedule(tuple(np.linspace(0.9, 0.1, 1000)), spacing="trailing").timesteps(4).tolist()
        [999, 749, 499, 249]
        """
        total = self.num_train_timesteps
        if not 1 <= steps <= total:
            raise ValueError(f"`steps` is {steps}; the model was trained with {total} timesteps: choose 1 to {total}")
        if self.spacing == "linspace":
            return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
        if self.spacing == "trailing":
            return np.round(np.arange(total, 0, -total / steps))[:steps].astype(np.int64) - 1
        leading = (np.arange(steps) * (total // steps))[::-1].astype(np.int64)
        return leading + min(self.steps_offset, total - 1 - int(leading[0]))  # with all steps there is no room

    def output_channels(self, channels: int) -> int:
        """Number of channels of the network's output, for a canvas of so many: a learned variance doubles them."""
        return channels * (2 if self.variance == "learned_range" else 1)

    def to_denoised(self, alpha_bar: float) -> tuple[float, float]:
        """(a, b) with denoised = a x + b output at a level, whatever the network predicts.

        >>> [round(v, 3) for v in Schedule((0.64,), "v_prediction").to_denoised(0.64)]
        [0.8, -0.6]
        """
        signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        if self.prediction == "sample":
            return 0.0, 1.0
        if self.prediction == "epsilon":
            return 1 / signal, -noise / signal
        return signal, -noise
