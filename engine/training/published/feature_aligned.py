"""``python -m engine.train feature-aligned``: the feature-aligned system's diffusion network, as its ``train_sd.py``
and ``model.py`` train it, aligned with an expert or not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.distributed.ranks import Ranks
from engine.models.card import colored
from engine.models.convert.checkpoint import open_checkpoint
from engine.models.convert.clip import text_embeddings
from engine.models.convert.feature_aligned import facts_of, read_table, scheduler, undivided
from engine.models.expert import load_expert
from engine.models.files import CLASSES, WEIGHTS, read_json
from engine.models.folder import diffusers_class, save_part
from engine.models.networks.embedder import Embedder
from engine.models.networks.resnet import BatchNorm, ResNet, sum_over
from engine.storage.files import whole_file, write_json
from engine.training.batch_norm import total_over
from engine.training.curve import HELD
from engine.training.diffusion import denoise, write_folder
from engine.training.loop import LoopSettings, image_grid
from engine.training.objectives import timesteps_of
from engine.training.published.common import Batch, Example, Task, Training, Windows
from engine.training.published.epochs import EpochMean, Facts, by_epochs
from engine.training.published.expert import refuse_parts
from engine.training.published.tissue import TissuePictures, class_means, tissue_pictures
from engine.training.recipe import PREDICTIONS
from engine.training.start import take_embedder, take_weights

ENDS = ("conv_in", "conv_out")  # layers that begin anew where the start weights are of another number of channels
LENGTH = 10.0  # of the vectors that stand for classes without embeddings, about that of CLIP's
EMBEDDED = 512  # features of CLIP's embeddings of texts
LEVELS = 25


@dataclass(frozen=True)
class AlignedSettings:
    """What is trained, as ``python -m engine.train feature-aligned --help`` says."""

    labels: Sequence[str]
    window: int
    features: Sequence[int]
    blocks: int
    attention: int
    token_width: int
    heads: int
    groups: int
    class_embeddings: Path | None
    clip_model: Path | None
    align: Path | None
    align_weight: float
    layer: str
    expert_sees: str
    expert_norm: str
    last_timestep: bool
    best: str
    prediction: str
    timesteps: str
    hold_out: float
    pixel_size: float
    validation_windows: int
    epochs: int
    gamma: float
    seed: int


class AlignedUNet(nn.Module):
    """A U-Net of diffusers under one token, and what is trained with it.

    Args:
        unet: diffusers' UNet2DConditionModel.
        embedder: Makes a token of a class's embedding.
        layer: Name of the layer of the U-Net whose features are aligned; empty: none.
    """

    def __init__(self, unet: nn.Module, embedder: Embedder, layer: str = "") -> None:
        super().__init__()
        self.unet, self.embedder = unet, embedder
        self.mapping: nn.Linear | None = None
        self.kept: Any = None
        if layer:
            dict(unet.named_modules())[layer].register_forward_hook(self.keep)

    def keep(self, module: nn.Module, given: Any, features: Any) -> None:
        self.kept = features

    def forward(self, x_BChw: Tensor, t_B: Tensor, embedding_BD: Tensor) -> Tensor:
        """The prediction of the noise, (B, C, h, w); the layer's features are in ``kept`` until they are taken."""
        return self.unet(x_BChw, t_B, self.embedder(embedding_BD), return_dict=False)[0]

    def pooled(self) -> Tensor:
        """(B, F): the mean over the picture of the layer's features in the last evaluation."""
        features, self.kept = self.kept, None
        return features.mean((2, 3))


def evaluate(network: nn.Module, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return network(x, t, inputs["embedding"])


def network_of(settings: AlignedSettings, expert: ResNet | None, table: np.ndarray, init: Path | None) -> AlignedUNet:
    """The network before its first step.

    Raises:
        ValueError: the settings, the layer or the start weights do not fit.
    """
    config = unet_config(settings)
    for name in ("heads", "groups"):
        width = undivided(settings.features, getattr(settings, name))
        if width:
            raise ValueError(
                f"`{name}` {getattr(settings, name)}: {width} of `features` cannot be split so; choose a divisor of all"
            )
    torch.manual_seed(settings.seed)
    unet = diffusers_class("UNet2DConditionModel").from_config(config)
    embedder = Embedder(table.shape[1], settings.token_width)
    if init is not None:
        start_weights(unet, embedder, config, init)
    layer = settings.layer if expert is not None else ""
    if layer and layer not in dict(unet.named_modules()):
        shortcuts = [name for name, _ in unet.named_modules() if name.endswith("conv_shortcut")]
        raise ValueError(f"`layer` {layer} is none of the network's; those like the published: {', '.join(shortcuts)}")
    network = AlignedUNet(unet, embedder, layer)
    if expert is not None:
        network.mapping = nn.Linear(expert.width, features_of(network, settings))
    return network


@torch.no_grad()
def features_of(network: AlignedUNet, settings: AlignedSettings) -> int:
    """Number of features of the layer that is aligned.

    Raises:
        ValueError: it gives no features of the picture.
    """
    size, width = settings.window, network.embedder.config["patch_width"]
    network(torch.zeros(1, 1, size, size), torch.zeros(1), torch.zeros(1, width))
    if not isinstance(network.kept, Tensor) or network.kept.ndim != 4:
        raise ValueError(f"`layer` {settings.layer} gives no features (B, F, h, w) of the picture; name another")
    return network.pooled().shape[1]


def unet_config(settings: AlignedSettings) -> dict[str, Any]:
    """diffusers' settings of a U-Net of segmind/tiny-sd's kind, of grey pictures."""
    levels = len(settings.features)
    attended = min(settings.attention or levels, levels)
    plain = levels - attended
    return {
        "sample_size": settings.window,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": list(settings.features),
        "down_block_types": ["CrossAttnDownBlock2D"] * attended + ["DownBlock2D"] * plain,
        "mid_block_type": None,
        "up_block_types": ["UpBlock2D"] * plain + ["CrossAttnUpBlock2D"] * attended,
        "layers_per_block": settings.blocks,
        "cross_attention_dim": settings.token_width,
        "attention_head_dim": settings.heads,
        "norm_num_groups": settings.groups,
    }


def start_weights(unet: nn.Module, embedder: Embedder, config: Mapping[str, Any], folder: Path) -> None:
    """Take the weights of a folder's U-Net, and those of its embedder if it has one of this shape.

    Its first and last convolutions begin anew where it is one of other channels, as tiny-sd's own.

    Raises:
        ValueError: there is none, or one of another shape.
    """
    tensors, own = weights_in(folder / "unet", folder), unet.state_dict()
    for name in ENDS:
        if f"{name}.weight" in tensors and tensors[f"{name}.weight"].shape != own[f"{name}.weight"].shape:
            tensors |= {key: own[key] for key in own if key.startswith(f"{name}.")}
    take_weights(unet, tensors, folder, config, folder / "unet" / "config.json")
    take_embedder(embedder, folder)


def weights_in(part: Path, folder: Path) -> dict[str, Tensor]:
    """The weights of a folder that this engine or diffusers wrote.

    Raises:
        ValueError: there are none.
    """
    files = [part / WEIGHTS, part / "diffusion_pytorch_model.bin"]
    found = [file for file in files if file.is_file()]
    if not found:
        raise ValueError(f"`init` {folder} is no model folder: it has no {part.name}/{WEIGHTS}; name one")
    return open_checkpoint(found[0])


# ---- classes ------------------------------------------------------------------------------------


def class_table(settings: AlignedSettings, init: Path | None) -> np.ndarray:
    """float32 (K, D): the embedding of each class.

    They are those of a file, of CLIP, of the start weights' folder where it knows every class, or else vectors that
    are drawn: a function of the name alone. What a class's token is, the linear layer learns.

    Raises:
        ValueError: they do not fit the classes.
    """
    if settings.class_embeddings is not None and settings.clip_model is not None:
        raise ValueError("both `clip_model` and `class_embeddings` are given; choose one")
    if settings.clip_model is not None:
        try:
            return text_embeddings(settings.clip_model, settings.labels)
        except ValueError as error:
            raise ValueError(str(error).replace("`clip`", "`clip_model`")) from None
    if settings.class_embeddings is not None:
        table = read_table(settings.class_embeddings)
        numeric = table.dtype.kind in "fiu" and bool(np.isfinite(table).all())
        if table.ndim != 2 or len(table) != len(settings.labels) or not numeric:
            raise ValueError(
                f"`class_embeddings` {settings.class_embeddings}: shape {table.shape}; expected finite numbers "
                f"({len(settings.labels)}, D), a row for each of `labels` ({', '.join(settings.labels)})"
            )
        return table.astype(np.float32)
    known = known_embeddings(init)
    if all(label.lower() in known for label in settings.labels):
        return np.stack([known[label.lower()] for label in settings.labels])
    return np.stack([drawn_embedding(label) for label in settings.labels])


def known_embeddings(folder: Path | None) -> dict[str, np.ndarray]:
    """The embeddings of a model folder's classes, by name."""
    if folder is None or not (folder / "embedder" / CLASSES).is_file():
        return {}
    from safetensors.numpy import load_file

    labels = read_json(folder / "card.json").get("labels", [])
    table = load_file(folder / "embedder" / CLASSES)["embeddings"]
    return {entry["name"].lower(): row for entry, row in zip(labels, table, strict=False)}


def drawn_embedding(label: str, width: int = EMBEDDED) -> np.ndarray:
    """float32 (D,): a vector of a direction that is drawn from a name.

    >>> a, b = drawn_embedding("tumor"), drawn_embedding("stroma")
    >>> round(float(np.linalg.norm(a)), 3), bool(abs(a @ b) < 20)
    (10.0, True)
    """
    seed = int.from_bytes(hashlib.sha256(label.lower().encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(width)
    return (vector * (LENGTH / np.linalg.norm(vector))).astype(np.float32)


# ---- the training -------------------------------------------------------------------------------


class AlignedTraining(Training):
    """The training of an aligned network, or a vanilla one."""

    def __init__(
        self,
        task: Task,
        out: Path,
        settings: LoopSettings,
        ranks: Ranks,
        device: str,
        own: AlignedSettings,
        expert: ResNet | None,
        table: np.ndarray,
    ) -> None:
        super().__init__(task, out, settings, ranks, device)
        self.own, self.table, self.expert = own, table, None if expert is None else expert.to(device)
        count = self.schedule.num_train_timesteps
        self.timesteps = timesteps_of(own.timesteps, count if own.last_timestep else count - 1)
        self.trainer.extra["timesteps"] = self.timesteps
        self.epoch = EpochMean(settings.every, ranks)
        self.trainer.extra["epoch"] = self.epoch
        self.trainer.extra["facts"] = Facts(facts_said(own, expert, table))
        if self.expert is not None:
            sum_over(self.expert, total_over(ranks))
            for module in self.expert.modules():
                if isinstance(module, BatchNorm):
                    module.momentum = 0.0  # running averages, which nothing of this training reads, stay

    def losses(self, positions: list[int], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, and its figures. Collective where the expert normalises over ranks."""
        if self.expert is not None:
            self.expert.train(self.own.expert_norm == "batch")
        loss, figures = super().losses(positions, batch)
        self.epoch.add(self.trainer.step, loss * (len(positions) / self.settings.batch_size))
        return loss, figures

    def parts_of(self, network: nn.Module, batch: Batch, t: np.ndarray) -> dict[str, Tensor]:
        """The parts of the loss of each window: "mse", "align" where there is an expert, and "loss", their sum."""
        x0, noise = (part.to(self.device, non_blocking=True) for part in (batch.x0, batch.noise))
        embedding, steps = batch.inputs["embedding"].to(self.device), torch.from_numpy(t).to(self.device)
        x = self.objective.noised(x0, steps, noise)
        parts = self.objective(network(x, steps, embedding), x0, x, steps, noise)
        if self.expert is not None:
            with torch.no_grad():
                wanted = self.expert.features(x if self.own.expert_sees == "noisy" else x0)
            parts["align"] = misalignment(network.mapping(wanted), network.pooled())  # type: ignore[operator]
            parts["loss"] = parts["mse"] + self.own.align_weight * parts["align"]
        return parts

    def after(self) -> None:
        """Write the model folder if it is the best at the end of an epoch; draw its pictures. Rank 0 writes."""
        if self.ranks.rank:
            return
        self.forget()
        step, averaged = self.trainer.step, self.trainer.ema.network
        if step % self.settings.every == 0 or self.trainer.done >= 1:
            self.keep_best(averaged, step)
        elif not (self.out / "model_index.json").exists():
            self.write(averaged, self.out)
        keep = self.settings.keep_every
        if keep and step % keep == 0:
            self.write(averaged, self.out / "checkpoints" / f"step-{step:06d}")
        self.show(averaged, step)

    def keep_best(self, averaged: nn.Module, step: int) -> None:
        """Write the model folder if no epoch before had a smaller mean loss, or loss on pictures held out. Local."""
        loss, of = self.epoch.mean(step), "of the epoch"
        if self.own.best == "held-out":
            loss, of = self.judged(averaged) or math.inf, "on pictures held out"
            self.trainer.write_down({"loss" + HELD: loss})
        path = self.folder / "best.json"
        least = read_json(path)["loss"] if path.exists() else math.inf
        better = "the best until now" if loss < least else f"kept is that of {least:.4f}"
        print(f"step {step}: loss {loss:.4f} {of}, {better}", flush=True)
        if loss < least:
            self.write(averaged, self.out)
            write_json(path, {"step": step, "loss": loss})

    def judged(self, network: nn.Module) -> float | None:
        """The loss on held-out windows; the expert normalises them by what it learned. Local."""
        if self.expert is not None:
            self.expert.eval()
        return super().judged(network)

    def write(self, network: nn.Module, folder: Path) -> None:
        """Write a model folder. Local."""
        from safetensors.numpy import save_file

        save_part(network.unet, folder / "unet")  # type: ignore[arg-type]
        save_part(network.embedder, folder / "embedder", torch.float32)  # type: ignore[arg-type]
        with whole_file(folder / "embedder" / CLASSES) as temporary:
            save_file({"embeddings": self.table}, temporary)
        write_folder(folder, dict(self.task.parts), dict(self.task.schedule), dict(self.task.card))


def misalignment(mapped_BF: Tensor, pooled_BF: Tensor) -> Tensor:
    """1 less the cosine between the expert's features, mapped, and the network's, (B,)."""
    return 1 - F.cosine_similarity(mapped_BF.float(), pooled_BF.float())


def facts_said(own: AlignedSettings, expert: ResNet | None, table: np.ndarray) -> dict[str, Any]:
    """What of the settings stays as it was when the training is resumed."""
    names = ("labels", "window", "align_weight", "layer", "expert_sees", "expert_norm", "last_timestep", "best")
    said = {name: getattr(own, name) for name in (*names, "hold_out", "prediction", "timesteps")}
    said["class_embeddings"] = hashlib.sha256(table.tobytes()).hexdigest()[:12]
    weights = hashlib.sha256()
    for tensor in () if expert is None else expert.state_dict().values():
        weights.update(tensor.cpu().numpy().tobytes())
    return {**said, "align": weights.hexdigest()[:12] if expert is not None else "none"}


def train_aligned(
    data: Path,
    out: Path,
    own: AlignedSettings,
    settings: LoopSettings,
    init: Path | None,
    ranks: Ranks,
    device: str,
    resume: bool,
) -> bool:
    """Train; whether it came to its end. Collective."""
    expert = ranks.agree(lambda: expert_of(own, settings))
    learned, held = ranks.agree(lambda: tissue_pictures(data, own.labels, own.window, own.hold_out, own.seed))
    table = ranks.agree(lambda: class_table(own, init))
    network = ranks.agree(lambda: network_of(own, expert, table, init))
    card = facts_of(own.window, own.pixel_size) | {"labels": colored(own.labels)}
    card["class_means"] = class_means(learned, ranks)
    if held.paths:
        class_means(held, ranks)  # one that cannot be read is better found now
    loop = ranks.agree(lambda: by_epochs(settings, len(learned), own.epochs, own.gamma))
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "embedder": ["slidefield", "Embedder"]}
    schedule = scheduler() | {"prediction_type": PREDICTIONS[own.prediction]}

    def windows(pictures: TissuePictures) -> Windows:
        return Windows(lambda position, rng: example(pictures, table, position, rng), own.seed)

    def picture(averaged: nn.Module) -> np.ndarray:
        return sample_grid(averaged, learned, table, schedule, device)

    said = f"{len(learned)} pictures, {len(held)} held out, {loop.epoch_steps} steps an epoch"
    task = Task(
        network,
        evaluate,
        schedule,
        card,
        parts,
        windows(learned),
        windows(held) if held.paths else None,
        picture,
        "mse",
        own.timesteps,
        said + (", aligned" if expert is not None else ", not aligned"),
        own.validation_windows,
    )
    return AlignedTraining(task, out, loop, ranks, device, own, expert, table).run(resume)


def expert_of(own: AlignedSettings, settings: LoopSettings) -> ResNet | None:
    """The expert that the network is aligned with.

    Raises:
        ValueError: it is none, or the settings do not go together.
    """
    if own.best == "held-out" and not own.hold_out:
        raise ValueError("`best` held-out needs pictures held out; choose `hold_out` above 0, such as 0.2")
    if own.align is None:
        return None
    if own.expert_norm == "batch":
        refuse_parts(settings)
        if settings.batch_size < 2:
            raise ValueError("`batch_size` 1: an expert that normalises by the batch takes two pictures or more")
    expert = load_expert(own.align)
    if expert.config["channels"] != 1:
        raise ValueError(f"`align` {own.align} takes pictures of {expert.config['channels']} channels; these are grey")
    return expert


def example(pictures: TissuePictures, table: np.ndarray, position: int, rng: np.random.Generator) -> Example:
    picture, label = pictures.at(position, rng)
    return Example(picture, {"embedding": table[label]})


def sample_grid(
    network: nn.Module, pictures: TissuePictures, table: np.ndarray, scheduler: dict[str, Any], device: str
) -> np.ndarray:
    """A picture of every class, under it a sample: uint8 (h, w, 3)."""
    schedule = Schedule.from_config(scheduler)
    real = np.stack([pictures.picture(pictures.classes.index(number)) for number in range(len(table))])
    embedding = torch.from_numpy(table).to(device)
    x = torch.randn(real.shape, generator=torch.Generator().manual_seed(0)).to(device)
    levels = schedule.timesteps(LEVELS).tolist()
    made = denoise(lambda x, t: network(x, t, embedding), schedule, x, levels).clamp(0, 1).cpu()
    both = torch.cat([torch.from_numpy(real), made]).movedim(1, -1).expand(-1, -1, -1, 3)
    return image_grid((both * 255).round().to(torch.uint8).numpy(), len(table))
