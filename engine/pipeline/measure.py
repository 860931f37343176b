"""The speed of this machine with a job's networks: what a dry run reckons its time with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine.inputs.condition import condition_of
from engine.models.folder import device_of
from engine.pipeline.level_plans import level_cover
from engine.pipeline.prepared import Prepared
from engine.pipeline.run import load_models, torch_threads
from engine.pipeline.sampling_round import make_denoiser
from engine.planning.geometry import Box

REPEATS = 3


def measure(prepared: Prepared) -> dict[str, Any]:
    """Evaluations a second, and seconds to decode one window, of one rank of this process's kind."""
    card, job, device = prepared.card, prepared.job, device_of(prepared.job.device, 0)
    with torch_threads(job.threads):
        models = load_models(prepared, device)
        condition = condition_of(prepared.inputs, job, card, prepared.frames, no_nuclei)
        denoiser = make_denoiser(prepared, models, condition, device)
        latents = torch.randn(denoiser.batch_size, card.channels, card.patch, card.patch, device=device)
        latents = latents.to(getattr(torch, job.dtype)).contiguous(memory_format=torch.channels_last)
        t = int(prepared.timesteps[0])
        batch = [condition.first_request(level_cover(prepared, 0))] * denoiser.batch_size
        evaluating = seconds_of(lambda: denoiser.evaluate(condition, batch, latents, t), device)
        facts = {"evaluations_per_second": denoiser.batch_size / evaluating, "device": device, "decode_seconds": 0.0}
        if (decode := models[0].decode) is not None:
            with torch.inference_mode():
                window = latents[:1].float().contiguous()
                facts["decode_seconds"] = seconds_of(lambda: decode(window), device)
    return facts


def no_nuclei(image: int, box: Box) -> np.ndarray:
    """An instance map without nuclei, for a model that is asked for them."""
    return np.zeros(box.shape, np.uint32)


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """The median time of some calls, after one that warms up."""
    times = []
    for _ in range(1 + REPEATS):
        begun = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return float(np.median(times[1:]))
