"""Parts that both diffusion networks are trained with: the loss, a sampler for pictures, the loop, the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.diffusion.solvers import ddim
from engine.distributed.ranks import Ranks
from engine.models.files import OURS
from engine.models.folder import save_part
from engine.storage.files import write_json
from engine.training.loop import LoopSettings, Trainer

Evaluation = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W), t (B,)) -> output


def velocity_loss(
    evaluate: Evaluation, schedule: Schedule, x0: Tensor, t: Tensor, generator: torch.Generator, device: str
) -> Tensor:
    """Mean squared error of the velocity of windows (B, C, h, w) at timesteps (B,)."""
    alpha_bar = torch.tensor(schedule.alpha_bar)[t].float()[:, None, None, None]
    noise = torch.randn(x0.shape, generator=generator)
    x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0
    output = evaluate(x.to(device).contiguous(memory_format=torch.channels_last), t.to(device))
    return ((output - velocity.to(device)) ** 2).mean()


def spread_evenly(count: int, generator: torch.Generator) -> Tensor:
    """float32 (count,) in [0, 1): one number from each of ``count`` equal parts."""
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count


@torch.no_grad()
def denoise(evaluate: Evaluation, schedule: Schedule, x: Tensor, levels: Sequence[int]) -> Tensor:
    """DDIM without noise from the first of ``levels`` down to the clean windows."""
    alpha_bar = [schedule.alpha_bar[t] for t in levels]
    for t, ab, step in zip(levels, alpha_bar, ddim(alpha_bar, 0.0), strict=True):
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


def fit(
    network: nn.Module,
    folder: Path,
    settings: LoopSettings,
    ranks: Ranks,
    loss: Callable[[list[int], torch.Generator], Tensor],
    save: Callable[[nn.Module], None],
    *,
    resume: bool,
    device: str,
    said: str,
) -> None:
    """Train a network to the end and keep its average in ``folder``. Collective over ``ranks``.

    Args:
        loss: Function of the windows' positions, and a generator seeded for them, that gives the loss.
        save: Function that rank 0 calls with the averaged network at every checkpoint, after writing its weights.
        said: Description of the data, which is printed first.
    """
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(network, settings, ranks, folder)
    if resume and trainer.resume() and ranks.rank == 0:
        print(f"resumed at step {trainer.step}", flush=True)
    generator = torch.Generator()
    if ranks.rank == 0:
        print(f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {said}", flush=True)

    def losses(positions: list[int]) -> tuple[Tensor, dict[str, float]]:
        generator.manual_seed(settings.seed * 1_000_003 + positions[0])
        value = loss(positions, generator)
        return value, {"loss": float(value.detach())}

    def after() -> None:
        if ranks.rank == 0:
            save_part(trainer.ema.network, folder)
            save(trainer.ema.network)

    trainer.run(losses, after)
