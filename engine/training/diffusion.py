"""Parts that both diffusion networks are trained with: the loss, a sampler for pictures, the loop, the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.diffusion.solvers import ddim
from engine.distributed.ranks import Ranks
from engine.models.files import OURS
from engine.models.folder import save_part
from engine.models.latent_colors import keep_colors
from engine.storage.files import write_json
from engine.training.loop import LoopSettings, Trainer

B = TypeVar("B")
Evaluation = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), t (B,)) -> output


def velocity_loss(
    evaluate: Evaluation,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    generator: torch.Generator,
    device: str,
    min_snr: float = 0.0,
) -> Tensor:
    """Mean squared error of the velocity of windows (B, C, h, w) at timesteps (B,).

    Args:
        min_snr: Bound of the weights min(signal over noise, bound) of the denoised windows' errors (Hang et al. 2023,
            arXiv:2303.09556); the velocity's are min(snr, bound) / (snr + 1). 0: all errors count alike.
    """
    alpha_bar = torch.tensor(schedule.alpha_bar)[t].float().to(device, non_blocking=True)
    signal, spread = (value.sqrt()[:, None, None, None] for value in (alpha_bar, 1 - alpha_bar))
    x0 = x0.to(device, non_blocking=True)
    noise = noise_like(x0, generator)
    x = signal * x0 + spread * noise
    velocity = signal * noise - spread * x0
    output = evaluate(x.contiguous(memory_format=torch.channels_last), t.to(device))
    errors = (output - velocity) ** 2
    return (errors.mean((1, 2, 3)) * snr_weights(alpha_bar, min_snr)).mean() if min_snr else errors.mean()


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers drawn where ``x`` lies, from the seed of a generator of the CPU: no GPU is waited for."""
    if x.device.type != "cpu":
        generator = torch.Generator(x.device).manual_seed(generator.initial_seed())
    return torch.randn(x.shape, generator=generator, device=x.device)


def snr_weights(alpha_bar: Tensor, most: float) -> Tensor:
    """min(snr, most) / (snr + 1): what an error of the velocity counts.

    >>> [round(weight, 4) for weight in snr_weights(torch.tensor([0.5, 0.9]), 3.0).tolist()]
    [0.5, 0.3]
    """
    return (alpha_bar / (1 - alpha_bar).clamp(min=1e-9)).clamp(max=most) * (1 - alpha_bar)


def spread_evenly(count: int, generator: torch.Generator) -> Tensor:
    """float32 (count,) in [0, 1): one number from each of ``count`` equal parts."""
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count


@torch.no_grad()
def denoise(evaluate: Evaluation, schedule: Schedule, x: Tensor, levels: Sequence[int]) -> Tensor:
    """DDIM without noise from the first of ``levels`` down to the clean windows."""
    alpha_bar = [schedule.alpha_bar[t] for t in levels]
    for t, ab, step in zip(levels, alpha_bar, ddim(alpha_bar, 0.0, schedule.rederive_noise), strict=True):
        output = evaluate(x, torch.full((len(x),), int(t), device=x.device))
        from_x, from_output = schedule.to_denoised(ab)
        denoised = from_x * x + from_output * output
        clipped = denoised if schedule.clip is None else denoised.clamp(-schedule.clip, schedule.clip)
        x = step.a * x + step.b * clipped + step.e * denoised
    return x


def write_folder(out: Path, parts: dict[str, list[str]], scheduler: dict, facts: dict) -> None:
    """Write ``model_index.json``, the scheduler, and ``card.json`` unless there is one: a user may have edited it."""
    (out / "scheduler").mkdir(exist_ok=True)
    write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    write_json(out / "model_index.json", {"_class_name": OURS, **parts, "scheduler": ["diffusers", "DDIMScheduler"]})
    if not (out / "card.json").exists():
        write_json(out / "card.json", facts)
        keep_colors(out)


def fit(
    network: nn.Module,
    folder: Path,
    settings: LoopSettings,
    ranks: Ranks,
    prepare: Callable[[list[int]], B],
    loss: Callable[[B, torch.Generator], Tensor],
    save: Callable[[nn.Module], None],
    *,
    resume: bool,
    device: str,
    said: str,
) -> bool:
    """Train a network to the end and keep its average in ``folder``. Collective over ``ranks``.

    Args:
        prepare: Function of the windows' positions that gives a batch; it is called ahead, in a thread.
        loss: Function of a batch, and a generator seeded for it, that gives the loss.
        save: Function that rank 0 calls with the averaged network at every checkpoint, after writing its weights.
        said: Description of the data, which is printed first.
    Returns:
        Whether the training came to its end.
    """
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(network, settings, ranks, folder)
    if resume and ranks.agree(trainer.resume) and ranks.rank == 0:
        print(f"resumed at step {trainer.step}", flush=True)
    if settings.compile:
        network.compile()
    generator = torch.Generator()
    if ranks.rank == 0:
        print(f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {said}", flush=True)

    def losses(positions: list[int], batch: B) -> tuple[Tensor, dict[str, Tensor]]:
        generator.manual_seed(settings.seed * 1_000_003 + positions[0])
        value = loss(batch, generator)
        return value, {"loss": value.detach()}

    def after() -> None:
        if ranks.rank == 0:
            save_part(trainer.ema.network, folder)
            save(trainer.ema.network)

    return trainer.run(prepare, losses, after)
