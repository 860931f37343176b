"""Noise schedules: betas, alpha_bar, timesteps, and the estimate of the clean canvas from a network's output.

All tables are float64. Names and values of the settings are those of a diffusers ``scheduler_config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.diffusion.names import BETA_SCHEDULES, ETA_VARIANCES, PREDICTIONS, SPACINGS, VARIANCES

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
        spacing: How a run's levels are chosen from the timesteps; see ``timesteps``.
        steps_offset: Number added to the timesteps of ``leading``.
        timestep_shift: How much denser a run's levels are where noise is much, by ``shifted_timesteps``; 1: as spaced.
        variance: Variance of the ancestral step: the posterior's, beta, or between the two as the network predicts.
        eta_variance: Variance of ddim's fresh noise: ``posterior``, that of the step from level to level, or
            ``one_timestep``, whose beta is that of the level's timestep alone (Large-Image-Diffusion's).
        final: alpha_bar after the last level of ddim and plms: 1, or that of the cleanest timestep, where
            ``set_alpha_to_one`` is false.
    """

    alpha_bar: tuple[float, ...]
    prediction: str = "epsilon"
    clip: float | None = None
    rederive_noise: bool = False
    spacing: str = "leading"
    steps_offset: int = 0
    timestep_shift: float = 1.0
    variance: str = "fixed_small"
    eta_variance: str = "posterior"
    final: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction_type is {self.prediction!r}; known: {', '.join(PREDICTIONS)}")
        if self.spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing is {self.spacing!r}; known: {', '.join(SPACINGS)}")
        if self.variance not in VARIANCES:
            raise ValueError(f"variance_type is {self.variance!r}; known: {', '.join(VARIANCES)}")
        if self.eta_variance not in ETA_VARIANCES:
            raise ValueError(f"eta_variance is {self.eta_variance!r}; known: {', '.join(ETA_VARIANCES)}")

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
            timestep_shift=float(config.get("timestep_shift", 1.0)),
            variance=(config.get("variance_type") or "fixed_small").removesuffix("_log"),
            eta_variance=config.get("eta_variance", "posterior"),
            final=1.0 if config.get("set_alpha_to_one", True) else float(alpha_bar[0]),
        )

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps that the model was trained with."""
        return len(self.alpha_bar)

    def alpha_bars(self, timesteps: Sequence[int] | np.ndarray) -> list[float]:
        """alpha_bar at each of a run's levels."""
        return [self.alpha_bar[t] for t in timesteps]

    def eta_betas(self, timesteps: Sequence[int] | np.ndarray) -> list[float] | None:
        """beta at each of a run's levels, where ``eta_variance`` is made of these; else None."""
        if self.eta_variance == "posterior":
            return None
        return [1 - self.alpha_bar[t] / (self.alpha_bar[t - 1] if t else 1.0) for t in timesteps]

    def timesteps(self, steps: int, sections: Sequence[int] | None = None) -> np.ndarray:
        """The timesteps of a run, noisiest first.

        ``leading`` takes every (T // steps)-th from 0, as diffusers does; ``smallest_stride`` the smallest stride that
        gives exactly so many from 0 to T, as guided-diffusion's ddimN does: where steps divides T the two agree.

        Args:
            steps: Number of levels, 1 up to the model's timesteps.
            sections: Number of levels in each of as many equal parts of the timesteps, cleanest first; their sum is
                ``steps``, and the spacing is not used.
        Raises:
            ValueError: ``steps`` is outside that range, or no stride gives so many, or a part has too few timesteps.

        >>> Schedule(tuple(np.linspace(0.9, 0.1, 1000)), spacing="trailing").timesteps(4).tolist()
        [999, 749, 499, 249]
        >>> Schedule(tuple(np.linspace(0.9, 0.1, 1000)), spacing="smallest_stride").timesteps(6).tolist()
        [835, 668, 501, 334, 167, 0]
        """
        total = self.num_train_timesteps
        if sections is not None:
            return in_sections(total, sections)
        if not 1 <= steps <= total:
            raise ValueError(f"`steps` is {steps}; the model was trained with {total} timesteps: choose 1 to {total}")
        spaced = self._spaced(steps)
        return spaced if self.timestep_shift == 1 else shifted_timesteps(spaced, total, self.timestep_shift)

    def _spaced(self, steps: int) -> np.ndarray:
        """int64 (steps,): a run's timesteps before any shift, noisiest first."""
        total = self.num_train_timesteps
        if self.spacing == "smallest_stride":
            return every(smallest_stride(total, steps), steps)
        if self.spacing == "linspace":
            return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
        if self.spacing == "trailing":
            return np.round(np.arange(total, 0, -total / steps))[:steps].astype(np.int64) - 1
        leading = every(total // steps, steps)
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


def every(stride: int, steps: int) -> np.ndarray:
    """int64 (steps,): every ``stride``-th timestep from 0, noisiest first."""
    return (np.arange(steps) * stride)[::-1].astype(np.int64)


def shifted_timesteps(timesteps: np.ndarray, total: int, shift: float) -> np.ndarray:
    """Timesteps t of ``total`` moved to s t / (1 + (s - 1) t), as flow models shift theirs (Esser et al. 2024,
    arXiv:2403.03206): brightness and colour of a window are decided under much noise, by few levels where these are
    evenly spaced, and then all windows come out alike.

    Args:
        timesteps: int64 (steps,), noisiest first, no two the same.
        shift: s; above 1 the levels are denser where noise is much, below 1 where it is little.
    Returns:
        int64 (steps,), noisiest first, no two the same: where rounding leaves no room they keep a distance of one.

    >>> shifted_timesteps(np.array([999, 749, 499, 249]), 1000, 3.0).tolist()
    [999, 899, 749, 499]
    """
    part = (timesteps + 1) / total
    moved = np.round(total * shift * part / (1 + (shift - 1) * part)).astype(np.int64) - 1
    place = np.arange(len(moved))
    apart = np.minimum.accumulate(moved + place) - place
    return np.maximum(apart, place[::-1])


def smallest_stride(total: int, steps: int) -> int:
    """The smallest stride from 0 to ``total`` that takes exactly ``steps`` timesteps.

    Raises:
        ValueError: there is none.
    """
    stride = -(-total // steps)  # a smaller one takes more
    if -(-total // stride) == steps:
        return stride
    fewer = -(-total // stride)
    more = -(-total // (stride - 1))
    raise ValueError(
        f"`steps` is {steps}, which no stride through the model's {total} timesteps gives exactly; "
        f"choose {fewer} or {more}, or `sections` {steps}"
    )


def in_sections(total: int, sections: Sequence[int]) -> np.ndarray:
    """Timesteps of a respaced run (Nichol & Dhariwal 2021, arXiv:2102.09672), noisiest first.

    The timesteps are cut into as many equal parts as there are sections (what is left over lengthens the first ones by
    one each); in each part, as many as asked for are taken evenly from its first to its last.

    Args:
        total: Number of timesteps of the model.
        sections: Number of levels in each part, cleanest first.
    Raises:
        ValueError: a part has fewer timesteps than are asked for.

    >>> in_sections(10, (2, 3)).tolist()
    [9, 7, 5, 4, 0]
    """
    shortest, longer = divmod(total, len(sections))
    taken: list[int] = []
    start = 0
    for index, count in enumerate(sections):
        size = shortest + (index < longer)
        if count > size:
            raise ValueError(
                f"`sections` asks for {count} levels in part {index + 1} of {len(sections)}, which has {size} of the "
                f"model's {total} timesteps; choose at most so many"
            )
        stride, position = (size - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            taken.append(start + round(position))
            position += stride  # added up, not multiplied: in rare places the two round to different timesteps
        start += size
    return np.array(taken[::-1], np.int64)
