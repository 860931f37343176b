"""What the trainings of the published systems share: batches that are functions of positions, the loss, the folder."""

from __future__ import annotations

import filecmp
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.distributed.ranks import Ranks
from engine.models.codec import LatentCodec
from engine.models.files import WEIGHTS, read_json
from engine.models.folder import load_part, save_part
from engine.storage.files import whole_file, write_json
from engine.training.curve import HELD, draw_curve
from engine.training.diffusion import write_folder
from engine.training.loop import LoopSettings, Trainer
from engine.training.objectives import Objective, UniformTimesteps, timesteps_of

Evaluate = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]  # network, x, t, inputs -> output

Each = Callable[[Callable[[int], Any], Sequence[int]], Iterable[Any]]


class Example(NamedTuple):
    """One window to train on.

    Args:
        x0: float32 (C, h, w), clean.
        inputs: What the network is given beside it, by name.
    """

    x0: np.ndarray
    inputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class Windows:
    """Examples as functions of (seed, position in the run), so that any number of ranks sees the same.

    Args:
        example: Function of a position, and a generator of the position's own random numbers.
        seed: Seed of the run.
        latents: Shape (C, h, w) of a window's latents, where an autoencoder makes them of its pixels.
    """

    example: Callable[[int, np.random.Generator], Example]
    seed: int
    latents: tuple[int, int, int] | None = None

    def one(self, position: int, stream: int = 0) -> tuple[Example, np.ndarray, np.ndarray | None, int]:
        """The example at a position, its noise, the noise of its autoencoder's latents, and the seed of its step."""
        rng = np.random.default_rng((self.seed, 10 + stream, position))
        example = self.example(position, rng)
        noise = rng.standard_normal(self.latents or example.x0.shape, np.float32)
        drawn = rng.standard_normal(self.latents, np.float32) if self.latents else None
        return example, noise, drawn, int(rng.integers(2**62))

    def batch(self, positions: Sequence[int], stream: int = 0, each: Each = map) -> Batch:
        """The examples at positions, with the noise of each.

        Args:
            stream: 0 are those of the training, 1 of the validation.
            each: ``map``, or that of threads.
        """
        examples, noise, of_latents, seeds = zip(*each(partial(self.one, stream=stream), positions), strict=True)
        drawn = [one for one in of_latents if one is not None]
        names = examples[0].inputs
        inputs = {name: torch.from_numpy(np.stack([e.inputs[name] for e in examples])) for name in names}
        x0 = torch.from_numpy(np.stack([e.x0 for e in examples]))
        latent_noise = torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(0)
        return Batch(x0, torch.from_numpy(np.stack(noise)), latent_noise, torch.tensor(seeds), inputs)


class Batch(NamedTuple):
    """Examples together.

    Args:
        x0: float32 (B, c, h, w), clean: what is trained on, or the pixels that an autoencoder makes it of.
        noise: As what is trained on.
        latent_noise: As ``noise``, of the autoencoder's latents; empty where there is none.
        seeds: int64 (B,), of what is drawn when the step comes: the timesteps.
    """

    x0: Tensor
    noise: Tensor
    latent_noise: Tensor
    seeds: Tensor
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """A training of a published system.

    Args:
        network: What is trained; on the CPU.
        evaluate: The network, or its average, as the objective asks it.
        schedule: As a ``scheduler_config.json`` has it.
        card: The values of ``card.json``.
        parts: Class of each part of the model folder, as in ``model_index.json``.
        windows: What is trained on.
        validation: What checkpoints are judged by; None: nothing, and the last is kept.
        picture: Function of the averaged network that draws samples, uint8 (h, w, 3).
        loss: One of ``engine.training.recipe.OBJECTIVES``.
        sampler: One of ``engine.training.recipe.SAMPLERS``.
        codec: The frozen autoencoder, where the network works on latents.
        said: What it is trained on, in words.
        validation_windows: Number of held-out windows that a checkpoint is judged by.
        trained: Function of the network, or of its average, that gives the parts of the model folder it is.
    """

    network: nn.Module
    evaluate: Evaluate
    schedule: Mapping[str, Any]
    card: Mapping[str, Any]
    parts: Mapping[str, list[str]]
    windows: Windows
    validation: Windows | None
    picture: Callable[[nn.Module], np.ndarray]
    loss: str
    sampler: str
    said: str
    validation_windows: int
    codec: LatentCodec | None = None
    trained: Callable[[nn.Module], Mapping[str, nn.Module]] = lambda network: {"unet": network}


class Training:
    """One training of a published system, from its first step or its last checkpoint to its end.

    Args:
        out: Model folder.
        device: Where the network is trained.
    """

    def __init__(self, task: Task, out: Path, settings: LoopSettings, ranks: Ranks, device: str) -> None:
        self.task, self.out, self.settings, self.ranks, self.device = task, out, settings, ranks, device
        self.schedule = Schedule.from_config(task.schedule)
        self.objective = Objective(self.schedule, task.loss)
        self.timesteps: UniformTimesteps = timesteps_of(task.sampler, self.schedule.num_train_timesteps)
        task.network.to(device)
        self.folder = out / "unet"
        ranks.agree(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self.anew = False  # what an earlier training left of its best is still there
        self.trainer = Trainer(task.network, settings, ranks, self.folder)
        self.trainer.extra["timesteps"] = self.timesteps

    def run(self, resume: bool) -> bool:
        """Train; whether it came to its end. Collective."""
        ranks, trainer = self.ranks, self.trainer
        if resume and ranks.agree(trainer.resume) and ranks.rank == 0:
            print(f"resumed at step {trainer.step}", flush=True)
        if ranks.rank == 0:
            parameters = sum(p.numel() for p in self.task.network.parameters())
            print(f"{parameters / 1e6:.2f} M parameters, {self.task.said}", flush=True)
        self.anew = not trainer.step
        if self.settings.compile:
            self.task.network.compile()
        self.task.network.train()
        with ThreadPoolExecutor(self.settings.readers, "examples") as readers:
            return trainer.run(partial(self.task.windows.batch, each=readers.map), self.losses, self.after)

    def losses(self, positions: list[int], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, and its figures. Collective where timesteps are learned from losses."""
        t, weights = self.timesteps.draw([np.random.default_rng(seed) for seed in batch.seeds.tolist()])
        torch.manual_seed(int(batch.seeds[0]))  # dropout: other masks on every rank, the same ones after a resume
        parts = self.parts_of(self.task.network, batch, t)
        if type(self.timesteps) is not UniformTimesteps:
            self.learn(t, parts["loss"])
        weighted = (parts["loss"] * torch.from_numpy(weights).to(parts["loss"])).mean()
        return weighted, {name: part.detach().mean() for name, part in parts.items()}

    def parts_of(self, network: nn.Module, batch: Batch, t: np.ndarray) -> dict[str, Tensor]:
        """The parts of the loss of each window, of the network or its average."""
        x0, noise = (part.to(self.device, non_blocking=True) for part in (batch.x0, batch.noise))
        if self.task.codec is not None:
            with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
                x0 = self.task.codec.draw(x0, batch.latent_noise)
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in batch.inputs.items()}
        steps = torch.from_numpy(t).to(self.device)
        x = self.objective.noised(x0, steps, noise)
        return self.objective(self.task.evaluate(network, x, steps, inputs), x0, x, steps, noise)

    def learn(self, t: np.ndarray, losses: Tensor) -> None:
        """Tell the timesteps what all ranks' losses were, in the order of positions. Collective."""
        told = self.ranks.allgather((t, losses.detach().cpu().numpy()))
        longest = max(len(each) for each, _ in told)
        for i in range(longest):
            for each, values in told:
                if i < len(each):
                    self.timesteps.learn(each[i : i + 1], values[i : i + 1])

    # ---- checkpoints ------------------------------------------------------------------------------

    def after(self) -> None:
        """Write the model folder, unless an earlier checkpoint was better; draw its pictures. Rank 0 writes."""
        if self.ranks.rank:
            return
        self.forget()
        step, averaged, best = self.trainer.step, self.trainer.ema.network, self.folder / "best.json"
        loss, least = self.judged(averaged), read_json(best)["loss"] if best.exists() else math.inf
        if loss is not None:
            better = "the best until now" if loss < least else f"kept is that of {least:.4f}"
            print(f"step {step}: loss {loss:.4f} on windows held out, {better}", flush=True)
            self.trainer.write_down({"loss" + HELD: loss})
        if loss is None or loss < least:
            write_model(self.out, averaged, self.task)
        if loss is not None and loss < least:
            write_json(best, {"step": step, "loss": loss})
        keep = self.settings.keep_every
        if keep and step % keep == 0:
            write_checkpoint(self.out, averaged, self.task, step)
        self.show(averaged, step)

    def forget(self) -> None:
        """Remove what an earlier training left, once this one has something of its own. Local."""
        for stale in (self.folder / "best.json", self.out / "card.json"):
            if self.anew:
                stale.unlink(missing_ok=True)
        self.anew = False

    def show(self, averaged: nn.Module, step: int) -> None:
        """Draw samples and the curve of the loss. Local."""
        picture = self.task.picture(averaged)
        Image.fromarray(picture).save(self.folder / "samples.png")
        if self.trainer.board is not None:
            self.trainer.board.picture(step, "samples", picture)
        draw_curve(self.folder / "training.jsonl", self.folder / "loss.png")

    @torch.no_grad()
    def judged(self, network: nn.Module) -> float | None:
        """The loss on held-out windows, the same ones at every call; None: none are held out."""
        if self.task.validation is None:
            return None
        total, size = 0.0, max(self.settings.batch_size // self.ranks.size, 1)
        count, number = self.schedule.num_train_timesteps, self.task.validation_windows
        for first in range(0, number, size):
            positions = range(first, min(first + size, number))
            t = np.array([(2 * position + 1) * count // (2 * number) for position in positions])
            parts = self.parts_of(network, self.task.validation.batch(positions, stream=1), t)
            total += float(parts["loss"].sum())
        return total / number


def write_model(out: Path, network: nn.Module, task: Task) -> None:
    """Write the model folder of a network, beside the parts that are there."""
    for name, part in task.trained(network).items():
        save_part(part, out / name)
    write_folder(out, dict(task.parts), dict(task.schedule), dict(task.card))


def write_checkpoint(out: Path, network: nn.Module, task: Task, step: int) -> None:
    """Write a model folder of its own for one step, ``OUT/checkpoints/step-N``."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    for part in task.parts:
        if part not in task.trained(network):
            (folder / part).mkdir(exist_ok=True)
            for file in (out / part).glob("*"):
                if file.name in (WEIGHTS, "config.json") and not (folder / part / file.name).exists():
                    link_or_copy(file, folder / part / file.name)
    write_model(folder, network, task)


def link_or_copy(file: Path, to: Path) -> None:
    """The same file under another name, or its copy where the disk has no links."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def autoencoder_settings(vae: Path | None, out: Path, ranks: Ranks) -> dict[str, Any]:
    """The ``config.json`` of a model folder's autoencoder, which is copied there first if it is named. Collective.

    Args:
        vae: A folder of diffusers, or of a pipeline that contains one.
    Raises:
        ValueError: there is none, or another.
    """

    def read() -> dict[str, Any]:
        if vae is not None:
            copy_autoencoder(vae, out)
        check_autoencoder(out)
        return read_json(out / "vae" / "config.json")

    return ranks.on_root(read)


def check_autoencoder(out: Path) -> None:
    """Refuse a model folder without an autoencoder.

    Raises:
        ValueError: there is none.
    """
    if not (out / "vae" / "config.json").is_file():
        raise ValueError(f"`vae` is not given and {out} holds no autoencoder; name its folder")


def autoencoder_of(vae: Path | None, out: Path, facts: Mapping[str, Any], ranks: Ranks, device: str) -> LatentCodec:
    """The frozen autoencoder of a model folder, which is copied there first if it is named. Collective.

    Args:
        vae: A folder of diffusers, or of a pipeline that contains one.
        facts: The values of ``card.json``.
    Raises:
        ValueError: there is none, or another.
    """
    autoencoder_settings(vae, out, ranks)
    return ranks.agree(lambda: read_autoencoder(out, facts, device))


def read_autoencoder(out: Path, facts: Mapping[str, Any], device: str) -> LatentCodec:
    """The frozen autoencoder of a model folder.

    Args:
        facts: The values of ``card.json``.
    Raises:
        ValueError: there is none.
    """
    check_autoencoder(out)
    return LatentCodec(load_part(out / "vae").to(device), read_json(out / "vae" / "config.json"), facts)


AUTOENCODERS = ("AutoencoderKL", "VQModel")


def copy_autoencoder(vae: Path, out: Path) -> None:
    """Copy an autoencoder into a model folder.

    Raises:
        ValueError: the folder holds none, or the model folder another.
    """
    folders = [folder for folder in (vae, vae / "vae") if (folder / "config.json").is_file()]
    if not folders or not (folders[0] / WEIGHTS).is_file():
        raise ValueError(f"`vae` {vae} holds no autoencoder (config.json and {WEIGHTS}); name its folder")
    kind = read_json(folders[0] / "config.json").get("_class_name")
    if kind not in AUTOENCODERS:
        raise ValueError(
            f"`vae` {vae} is a {kind}; the published networks take an {' or a '.join(AUTOENCODERS)} of diffusers, "
            "such as one of engine.train first-stage"
        )
    to = out / "vae"
    load_part(folders[0])  # or what is broken would stay there
    for name in ("config.json", WEIGHTS):
        if not (to / name).exists():
            to.mkdir(parents=True, exist_ok=True)
            with whole_file(to / name) as temporary:
                shutil.copyfile(folders[0] / name, temporary)
    if not all(filecmp.cmp(to / name, folders[0] / name, shallow=False) for name in ("config.json", WEIGHTS)):
        raise ValueError(f"`vae` {vae} is another autoencoder than {to}; leave it out, or train into another folder")


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture, from its header.

    Raises:
        ValueError: it is none.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError) as error:  # Pillow says so of a broken PNG
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None
