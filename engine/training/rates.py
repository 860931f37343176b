"""How a learning rate goes on over a run, and the first of Adam's betas with it."""

from __future__ import annotations

import math

LEAST_RATE = 0.02  # of the peak, where a cosine ends
RISES = 0.3  # share of the run in which "onecycle" rises


def rate_at(schedule: str, done: float) -> float:
    """The learning rate over its peak, after a share of the run.

    >>> [round(rate_at("onecycle", done), 3) for done in (0.0, 0.3, 1.0)], rate_at("linear", 0.25)
    ([0.04, 1.0, 0.0], 0.75)
    """
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))
    first, last = 1 / 25, 1 / 25e4  # torch's OneCycleLR
    if done < RISES:
        return first + (1 - first) * 0.5 * (1 - math.cos(math.pi * done / RISES))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (done - RISES) / (1 - RISES)))


def momentum_at(done: float) -> float:
    """The first of Adam's betas under ``onecycle``: 0.95, down to 0.85 while the learning rate rises, and up again.

    >>> [round(momentum_at(done), 3) for done in (0, 0.15, 0.3, 1)]
    [0.95, 0.9, 0.85, 0.95]
    """
    way = done / RISES if done < RISES else 1 + (done - RISES) / (1 - RISES)
    return 0.9 + 0.05 * math.cos(math.pi * way)


def rate_by_epoch(schedule: str, done: float, epochs: float, gamma: float) -> float:
    """The learning rate over its peak, which changes after each epoch alone.

    >>> [round(rate_by_epoch("step", done, 4, 0.5), 3) for done in (0, 0.24, 0.25, 0.99)]
    [1.0, 1.0, 0.5, 0.125]
    >>> [round(rate_by_epoch("cosine-by-epoch", done, 4, 0.5), 3) for done in (0.1, 0.5, 0.75)]
    [1.0, 0.5, 0.146]
    """
    epoch = math.floor(done * epochs + 1e-6)
    return gamma**epoch if schedule == "step" else 0.5 * (1 + math.cos(math.pi * epoch / epochs))
