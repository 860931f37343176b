"""What a diffusion network is trained for: errors of what it predicts, the variational bound, and at which timesteps.

Shape suffixes: B batch, C channels, H W latents or pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.diffusion.schedule import Schedule

RESCALED = 1000  # timesteps of which the bound of rescaled-hybrid is the mean
HISTORY = 10  # losses of a timestep that loss-second-moment remembers
UNIFORM_SHARE = 0.001  # of its draws


class Objective:
    """The loss of every window of a batch.

    Args:
        schedule: The model's; it says what the network predicts and whether it learns its variance.
        loss: ``mse`` of the prediction; with a learned variance ``hybrid``, which adds the variational bound in bits
            with the mean detached (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 16), ``rescaled-hybrid``, whose bound
            is of 1000 timesteps, or ``kl``, the bound alone, of all timesteps.
    """

    def __init__(self, schedule: Schedule, loss: str = "mse") -> None:
        self.schedule, self.loss = schedule, loss
        self.tables = tables_of(schedule)

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """(B, C, H, W): clean windows as noisy as their timesteps say."""
        return x0 * self.at("signal", t, x0) + noise * self.at("spread", t, x0)

    def __call__(self, output: Tensor, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The parts of the loss of each window, float32 (B,): "loss", their sum, "mse" and "vb" as far as it has them.

        Args:
            output: The network's, (B, C, H, W), or (B, 2 C, H, W) with the prediction of the variance.
            x: The noisy windows.
        """
        output = output.float()
        channels = x0.shape[1]
        prediction, variance = output[:, :channels], output[:, channels:]
        parts = {}
        if self.loss != "kl":
            parts["mse"] = mean_of((self.target(x0, t, noise) - prediction) ** 2)
        if variance.shape[1]:
            mean = prediction if self.loss == "kl" else prediction.detach()
            bound = self.bound(mean, variance, x0, x, t)
            steps = self.schedule.num_train_timesteps
            factor = {"kl": steps, "rescaled-hybrid": steps / RESCALED, "hybrid": 1.0}.get(self.loss, 0.0)
            if factor:
                parts["vb"] = bound * factor
        return {"loss": torch.stack(list(parts.values())).sum(0), **parts}

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network is to predict."""
        if self.schedule.prediction == "epsilon":
            return noise
        if self.schedule.prediction == "sample":
            return x0
        return noise * self.at("signal", t, x0) - x0 * self.at("spread", t, x0)

    def bound(self, prediction: Tensor, variance: Tensor, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """float32 (B,): a timestep's term of the variational bound, bits a value (Ho et al. 2020, arXiv:2006.11239,
        eq. 5); at timestep 0 the likelihood of the 256 grey levels.
        """
        from_x, from_output = self.at("from_x", t, x0), self.at("from_output", t, x0)
        estimate = from_x * x + from_output * prediction
        of_x0, of_x = self.at("posterior_x0", t, x0), self.at("posterior_x", t, x0)
        true_mean, mean = of_x0 * x0 + of_x * x, of_x0 * estimate + of_x * x
        least, most = self.at("least", t, x0), self.at("most", t, x0)
        share = (variance + 1) / 2
        log_variance = share * most + (1 - share) * least
        divergence = mean_of(normal_divergence(true_mean, least, mean, log_variance))
        likelihood = mean_of(log_likelihood_of_levels(x0, mean, 0.5 * log_variance))
        return torch.where(t.to(x0.device) == 0, -likelihood, divergence) / math.log(2)

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """A table's value at each window's timestep, (B, 1, 1, 1)."""
        return self.tables[name][t.cpu()].to(like.device)[:, None, None, None]


def tables_of(schedule: Schedule) -> dict[str, Tensor]:
    """float32 (T,) each: the coefficients of every timestep, computed in float64."""
    alpha_bar = np.array(schedule.alpha_bar)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    beta = 1 - alpha_bar / before
    posterior = beta * (1 - before) / (1 - alpha_bar)
    posterior[0] = posterior[min(1, len(posterior) - 1)]  # it is 0 there, and has no logarithm
    denoised = np.array([schedule.to_denoised(ab) for ab in schedule.alpha_bar])
    tables = {
        "signal": np.sqrt(alpha_bar),
        "spread": np.sqrt(1 - alpha_bar),
        "from_x": denoised[:, 0],
        "from_output": denoised[:, 1],
        "posterior_x0": beta * np.sqrt(before) / (1 - alpha_bar),
        "posterior_x": (1 - before) * np.sqrt(1 - beta) / (1 - alpha_bar),
        "least": np.log(posterior),
        "most": np.log(beta),
    }
    return {name: torch.from_numpy(table).float() for name, table in tables.items()}


def mean_of(values: Tensor) -> Tensor:
    """The mean of each window, (B,)."""
    return values.flatten(1).mean(1)


def normal_divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of normal distributions, in nats."""
    ratio = torch.exp(log_variance - other_log_variance)
    distance = (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    return 0.5 * (-1.0 + other_log_variance - log_variance + ratio + distance)


def log_likelihood_of_levels(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The log-likelihood of each grey level under a normal distribution that is cut into 256 levels over [-1, 1]."""
    centred, inverse = x - mean, torch.exp(-log_std)
    above, below = normal_cdf(inverse * (centred + 1 / 255)), normal_cdf(inverse * (centred - 1 / 255))
    inside = (above - below).clamp(min=1e-12).log()
    lowest, highest = above.clamp(min=1e-12).log(), (1 - below).clamp(min=1e-12).log()
    return torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inside))


def normal_cdf(x: Tensor) -> Tensor:
    """The standard normal's distribution function, by the approximation that the published bound is computed with."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


class UniformTimesteps:
    """Every timestep as often."""

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, rngs: Sequence[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """int64, float64 (B,): a timestep of each window, and the weight of its loss.

        Args:
            rngs: Random numbers of each window.
        """
        return np.array([rng.integers(self.count) for rng in rngs]), np.ones(len(rngs))

    def learn(self, timesteps: np.ndarray, losses: np.ndarray) -> None:
        """There is nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to load."""


class LossSecondMomentTimesteps(UniformTimesteps):
    """A timestep the oftener the larger its losses were, weighted the less (Nichol & Dhariwal 2021, section 3.3).

    Until every timestep has ``HISTORY`` losses, all are drawn alike.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.losses = np.zeros((count, HISTORY))
        self.known = np.zeros(count, np.int64)

    def probabilities(self) -> np.ndarray:
        """float64 (T,)."""
        if (self.known < HISTORY).any():
            return np.full(self.count, 1 / self.count)
        root = np.sqrt((self.losses**2).mean(1))
        return root / root.sum() * (1 - UNIFORM_SHARE) + UNIFORM_SHARE / self.count

    def draw(self, rngs: Sequence[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        probabilities = self.probabilities()
        t = np.array([rng.choice(self.count, p=probabilities) for rng in rngs])
        return t, 1 / (self.count * probabilities[t])

    def learn(self, timesteps: np.ndarray, losses: np.ndarray) -> None:
        for t, loss in zip(timesteps.tolist(), losses.tolist(), strict=True):
            if self.known[t] == HISTORY:
                self.losses[t, :-1] = self.losses[t, 1:]
                self.losses[t, -1] = loss
            else:
                self.losses[t, self.known[t]] = loss
                self.known[t] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"losses": torch.from_numpy(self.losses.copy()), "known": torch.from_numpy(self.known.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:  # a run that drew uniformly has none
            self.losses, self.known = state["losses"].numpy().copy(), state["known"].numpy().copy()


def timesteps_of(sampler: str, count: int) -> UniformTimesteps:
    """The sampler of a name of ``recipe.SAMPLERS``."""
    return {"uniform": UniformTimesteps, "loss-second-moment": LossSecondMomentTimesteps}[sampler](count)
