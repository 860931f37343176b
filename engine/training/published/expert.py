"""``python -m engine.train expert``: the feature-aligned system's classifier of tissue, as its ``main.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.distributed.ranks import Ranks
from engine.models.expert import PART, load_expert, read_weights, take_weights
from engine.models.files import read_json
from engine.models.folder import save_part
from engine.models.networks.resnet import ResNet, sum_over
from engine.storage.files import write_json
from engine.training.batch_norm import total_over
from engine.training.curve import HELD, draw_curve
from engine.training.loop import LoopSettings, Trainer
from engine.training.published.epochs import Facts, by_epochs
from engine.training.published.tissue import class_means, tissue_pictures

ACCURACY = "accuracy.json"


@dataclass(frozen=True)
class ExpertSettings:
    """What is trained, as ``python -m engine.train expert --help`` says."""

    labels: Sequence[str]
    window: int
    width: int
    depths: Sequence[int]
    hidden: int
    weights: Path | None
    first_layer: str
    softmax: str
    hold_out: float
    epochs: int
    gamma: float
    seed: int


class Pictures(NamedTuple):
    """Pictures together.

    Args:
        x: float32 (B, 1, h, w) in [0, 1].
        label: int64 (B,), their classes.
    """

    x: Tensor
    label: Tensor


def classification_loss(logits: Tensor, label: Tensor, softmax: str) -> Tensor:
    """The cross entropy of each picture, (B,).

    Args:
        softmax: ``single``, or ``double`` as published: of logits that are probabilities already, which are at most 1
            apart, so that it never comes below log(1 + (K - 1) / e), 1.27 of 8 classes.
    """
    logits = logits.float()
    return F.cross_entropy(logits.softmax(-1) if softmax == "double" else logits, label, reduction="none")


def network_of(settings: ExpertSettings, init: Path | None) -> ResNet:
    """The network before its first step.

    Raises:
        ValueError: the start weights do not fit.
    """
    torch.manual_seed(settings.seed)
    network = ResNet(1, len(settings.labels), settings.width, settings.depths, settings.hidden)
    if init is not None and settings.weights is not None:
        raise ValueError("both `init` and `weights` are given; choose one")
    if init is not None:
        take_weights(network, load_expert(init).state_dict(), init)
    if settings.weights is not None:
        begin_from(network, settings.weights, settings.first_layer)
    return network


def begin_from(network: ResNet, file: Path, first_layer: str) -> None:
    """Take the weights of a classifier of other pictures, but for its head.

    Args:
        first_layer: ``new``, which begins anew as the authors', or ``sum`` of the file's over the colours: what it
            makes of a grey picture in three channels.
    Raises:
        ValueError: they are those of a network of another shape.
    """
    own, (_, tensors) = network.state_dict(), read_weights(file)
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    head = {key: tensor for key, tensor in own.items() if key.startswith("fc.")}
    first = own["conv1.weight"] if first_layer == "new" else kept["conv1.weight"].sum(1, keepdim=True)
    take_weights(network, {**kept, **head, "conv1.weight": first}, file)


class ExpertTraining:
    """The training of an expert, from its first step or its last checkpoint to its end. Collective.

    Args:
        out: Folder of the result: ``expert/config.json`` with its weights, its accuracy and confusion matrix.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        settings: ExpertSettings,
        loop: LoopSettings,
        init: Path | None,
        ranks: Ranks,
        device: str,
    ) -> None:
        self.settings, self.ranks, self.device = settings, ranks, device
        ranks.agree(lambda: check(settings, loop))
        sets = ranks.agree(
            lambda: tissue_pictures(data, settings.labels, settings.window, settings.hold_out, settings.seed)
        )
        self.learned, self.held = sets
        self.loop = by_epochs(loop, len(self.learned), settings.epochs, settings.gamma)
        network = ranks.agree(lambda: network_of(settings, init))
        for pictures in sets:
            class_means(pictures, ranks)  # one that cannot be read is better found now
        self.network = network.to(device)
        sum_over(self.network, total_over(ranks))
        self.folder = out / PART
        ranks.agree(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self.trainer = Trainer(self.network, self.loop, ranks, self.folder)
        said = {name: getattr(settings, name) for name in ("labels", "window", "softmax", "hold_out")}
        self.trainer.extra["facts"] = Facts(said)

    def run(self, resume: bool) -> bool:
        """Train; whether it came to its end. Collective."""
        trainer, ranks = self.trainer, self.ranks
        if resume and ranks.agree(trainer.resume) and ranks.rank == 0:
            print(f"resumed at step {trainer.step}", flush=True)
        if ranks.rank == 0:
            if not trainer.step:
                (self.folder / ACCURACY).unlink(missing_ok=True)
            size = sum(p.numel() for p in self.network.parameters()) / 1e6
            sets = f"{len(self.learned)} pictures, {len(self.held)} held out"
            print(f"{size:.2f} M parameters, {sets}, {self.loop.epoch_steps} steps an epoch", flush=True)
        if self.loop.compile:
            self.network.compile()
        self.network.train()
        return trainer.run(self.prepare, self.losses, self.after)

    def prepare(self, positions: list[int]) -> Pictures:
        made = [
            self.learned.at(position, np.random.default_rng((self.settings.seed, 10, position)))
            for position in positions
        ]
        return Pictures(torch.from_numpy(np.stack([x for x, _ in made])), torch.tensor([label for _, label in made]))

    def losses(self, positions: list[int], batch: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a rank's part of a batch, and its figures. Collective where there are several ranks."""
        x, label = (part.to(self.device, non_blocking=True) for part in batch)
        logits = self.network(x)
        loss = classification_loss(logits, label, self.settings.softmax).mean()
        right = (logits.detach().argmax(1) == label).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": right}

    # ---- checkpoints ------------------------------------------------------------------------------

    def after(self) -> None:
        """Judge the network by the pictures held out, and keep it if it is the best. Collective; rank 0 writes."""
        step, averaged = self.trainer.step, self.trainer.ema.network
        judged = step % self.loop.every == 0 or self.trainer.done >= 1
        confusion, loss = self.judge(averaged) if judged else (None, 0.0)
        if self.ranks.rank:
            return
        if confusion is not None:
            self.keep_best(averaged, step, confusion, loss)
        elif not (self.folder / "config.json").exists():
            save_part(averaged, self.folder, torch.float32)
        draw_curve(self.folder / "training.jsonl", self.folder / "loss.png")

    @torch.no_grad()
    def judge(self, network: nn.Module) -> tuple[np.ndarray, float]:
        """int64 (K, K), pictures of each class (rows) by what they are taken for, and their mean loss. Collective."""
        kinds, size = len(self.settings.labels), self.loop.batch_size
        sums = np.zeros(kinds * kinds + 1)
        mine = range(self.ranks.rank, len(self.held), self.ranks.size)
        for first in range(0, len(mine), size):
            part = mine[first : first + size]
            x = torch.from_numpy(np.stack([self.held.picture(index) for index in part])).to(self.device)
            label = torch.tensor([self.held.classes[index] for index in part], device=self.device)
            logits = network(x)
            sums[-1] += float(classification_loss(logits, label, self.settings.softmax).sum())
            np.add.at(sums, (label * kinds + logits.argmax(1)).cpu().numpy(), 1)
        self.ranks.allreduce_array(sums)
        return sums[:-1].astype(np.int64).reshape(kinds, kinds), float(sums[-1]) / len(self.held)

    def keep_best(self, network: nn.Module, step: int, confusion: np.ndarray, loss: float) -> None:
        """Write the network if it is more often right than every one before, and how often each was. Local."""
        path = self.folder / ACCURACY
        known: dict[str, Any] = read_json(path) if path.exists() else {"best": {"accuracy": -1.0}, "epochs": []}
        accuracy = float(np.trace(confusion) / confusion.sum())
        now = {"step": step, "epoch": round(step / self.loop.epoch_steps, 3), "accuracy": accuracy, "loss": loss}
        epochs = [record for record in known["epochs"] if record["step"] < step] + [now]
        self.trainer.write_down({"loss" + HELD: loss, "accuracy" + HELD: accuracy})
        best, better = known["best"], accuracy > known["best"]["accuracy"]
        if better:
            best = {**now, "confusion": confusion.tolist()}
            save_part(network, self.folder, torch.float32)
        write_json(path, {"labels": list(self.settings.labels), "best": best, "epochs": epochs})
        kept = "the best until now" if better else f"kept is that of {best['accuracy']:.4f}"
        print(f"step {step}: {accuracy:.4f} of the pictures held out are right, loss {loss:.4f}, {kept}", flush=True)


def check(settings: ExpertSettings, loop: LoopSettings) -> None:
    """Refuse settings that an expert cannot be trained with.

    Raises:
        ValueError: naming them.
    """
    if len(settings.labels) < 2:
        raise ValueError(f"`labels` names {len(settings.labels)} class; a classifier takes two or more")
    if not 0 < settings.hold_out < 1:
        raise ValueError(
            f"`hold_out` {settings.hold_out:g}: the expert is judged by the pictures held out; choose a share between "
            "0 and 1, such as 0.2"
        )
    if loop.batch_size < 2:
        raise ValueError("`batch_size` 1: a network that normalises by the batch takes two pictures or more")
    refuse_parts(loop)


def refuse_parts(loop: LoopSettings) -> None:
    """Refuse micro-batches of networks that normalise by the batch.

    Raises:
        ValueError: there are some.
    """
    if loop.accumulate > 1:
        raise ValueError(
            f"`accumulate` {loop.accumulate}: the expert normalises each batch by its own mean and variance, which its "
            "parts do not have; leave it out, and use more ranks or a smaller `batch_size`"
        )
