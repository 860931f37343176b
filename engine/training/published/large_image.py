"""``python -m engine.train large-image``: Large-Image-Diffusion's U-Net and the layer that makes its tokens, as its
``main.py`` trains them (Graikos et al. 2024, arXiv:2312.07330).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.diffusion.schedule import Schedule
from engine.distributed.ranks import Ranks
from engine.models.codec import LatentCodec
from engine.models.convert.checkpoint import below, open_checkpoint
from engine.models.convert.common import latents_defaults
from engine.models.convert.large_image import PRESETS
from engine.models.convert.latent_diffusion import unet_config, unet_tensors
from engine.models.networks.embedder import Embedder
from engine.storage.readers import read_rows, split_dataset
from engine.training.autoencoder import to_image
from engine.training.data import number_at, read_picture, spread
from engine.training.diffusion import denoise
from engine.training.loop import image_grid
from engine.training.published.common import (
    Example,
    Task,
    Windows,
    autoencoder_of,
    picture_size,
)
from engine.training.recipe import PREDICTIONS
from engine.training.start import start_weights, take_embedder, take_weights

LEVELS, SHOWN = 25, 4
CHECKED = 10000  # pictures whose headers are read before the training begins, at most, on all ranks together
LISTS, SPLITS, FEATURES = "patch_list_{}.npy", ("{}_all.npz", "{}.npz"), "ssl_features"  # as the authors name them
U_NET = "model.diffusion_model."
LAST = ("conv2", "proj_out", "conv_out")  # layers that residual blocks, attention and the network end with


@dataclass(frozen=True)
class LargeImageSettings:
    """What is trained, as ``python -m engine.train large-image --help`` says."""

    window: int
    model_channels: int
    channel_mult: Sequence[int]
    blocks: int
    attention: Sequence[int]
    heads: int
    token_width: int
    drop: float
    pixel_size: float
    prediction: str
    timesteps: str
    hold_out: int
    validation_windows: int
    seed: int


class Conditioned(nn.Module):
    """A U-Net of diffusers and the layers that make its tokens of embeddings, trained as one."""

    def __init__(self, unet: nn.Module, embedder: Embedder) -> None:
        super().__init__()
        self.unet, self.embedder = unet, embedder

    def forward(self, x_BCHW: Tensor, t_B: Tensor, patch_BD: Tensor, region_BR: Tensor | None = None) -> Tensor:
        return self.unet(x_BCHW, t_B, self.embedder(patch_BD, region_BR), return_dict=False)[0]


# ---- patches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """Pictures and their rows in a file of embeddings.

    Args:
        folder: Of the pictures.
        names: Their paths below it.
        rows: int64 (n,), of each one's embedding.
        region_rows: int64 (n,), of the embedding of each one's region; None: there are none.
    """

    folder: Path
    names: np.ndarray
    rows: np.ndarray
    region_rows: np.ndarray | None = None

    def of(self, which: Sequence[int] | np.ndarray) -> Listed:
        """Some of the pictures."""
        region = None if self.region_rows is None else self.region_rows[which]
        return Listed(self.folder, self.names[which], self.rows[which], region)

    def path(self, index: int) -> Path:
        return self.folder / str(self.names[index])


class EmbeddedPatches:
    """Patches, each with its embedding and perhaps that of its region.

    Args:
        patches: The embeddings, (..., D), read row by row.
        regions: As ``patches``, or None.
        drop: Share of windows whose embedding is zeros, and likewise that of the region: the null.
        side: Side of a window, px.
        flip: Whether windows are mirrored along each axis as often as not.
    """

    def __init__(
        self, listed: Listed, patches: Any, regions: Any, *, side: int, drop: float, flip: bool, seed: int
    ) -> None:
        self.listed, self.patches, self.regions = listed, patches, regions
        self.side, self.drop, self.flip, self.seed = side, drop, flip, seed

    def __len__(self) -> int:
        return len(self.listed.rows)

    def check(self, rank: int, size: int) -> None:
        """Refuse pictures that are not there or too small, as far as a moment allows: this rank's part of them.

        Raises:
            ValueError: naming the picture.
        """
        for index in range(rank, len(self), size * max(len(self) // CHECKED, 1)):
            height, width = picture_size(self.listed.path(index))
            if min(height, width) < self.side:
                raise ValueError(
                    f"{self.listed.path(index)} is {height} x {width} px, smaller than a window of {self.side}; "
                    "choose a smaller `window`"
                )

    def example(self, position: int, rng: np.random.Generator) -> Example:
        """A window at a position of the run: every epoch visits each picture once, in an order of its own."""
        index = number_at(position, len(self), self.seed)
        picture = read_picture(self.listed.path(index), color=True)
        y, x = (int(rng.integers(n - self.side + 1)) for n in picture.shape[:2])
        pixels = np.moveaxis(picture[y : y + self.side, x : x + self.side], -1, 0)
        for axis in (1, 2):
            if self.flip and rng.random() < 0.5:
                pixels = np.flip(pixels, axis)
        given = {"patch": self.embedding(self.patches, self.listed.rows[index], rng)}
        if self.listed.region_rows is not None:
            given["region"] = self.embedding(self.regions, self.listed.region_rows[index], rng)
        return Example(np.ascontiguousarray(pixels) / np.float32(127.5) - np.float32(1), given)

    def embedding(self, file: Any, row: int, rng: np.random.Generator) -> np.ndarray:
        """float32 (D,): a row of a file, or zeros.

        Raises:
            ValueError: it is not finite.
        """
        if rng.random() < self.drop:
            return np.zeros(file.shape[-1], np.float32)
        values = np.asarray(file[tuple(int(i) for i in np.unravel_index(row, file.shape[:-1]))], np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{getattr(file, 'name', '`embeddings`')}: row {row} holds values that are not finite")
        return values


def datasets(
    data: Path, embeddings: Path | None, regions: Path | None, magnification: str, settings: LargeImageSettings
) -> tuple[EmbeddedPatches, EmbeddedPatches | None]:
    """The patches that are trained on, and those that are held out.

    ``data`` is the authors' folder, with ``patch_list_20x.npy``, ``train_test_split``, ``pyramid`` and
    ``ssl_features``; or one of pictures, whose embeddings ``engine.embed`` has written with their names.

    Args:
        embeddings: File of embeddings, with a dataset perhaps; None: the only one of the authors' folder.
        regions: As ``embeddings``, of the patches' regions; None: the model knows no regions.
        magnification: The authors' word in the names of lists, splits and datasets.
    Raises:
        ValueError: it is neither, or a file is missing or does not fit.
    """
    published = (data / LISTS.format(magnification)).is_file()
    if not data.is_dir():
        raise ValueError(f"`data` {data} is no folder")
    if published:
        if settings.hold_out:
            raise ValueError(
                f"`hold_out` {settings.hold_out}: train_test_split of `data` {data} says what is held out; leave it out"
            )
        embeddings = embeddings or only_features(data, magnification)
    elif embeddings is None:
        raise ValueError(f"`data` {data} has no {LISTS.format(magnification)}; pass `embeddings`, of its pictures")
    patches = read_rows(embeddings, "`embeddings`")
    of_regions = None if regions is None else read_rows(regions, "`region_embeddings`")
    if published:
        learned, judged = (split_of(data, split, magnification, patches, of_regions) for split in ("train", "test"))
        if learned is None:
            names = " nor ".join(name.format("train") for name in SPLITS)
            raise ValueError(f"{data / 'train_test_split'} has neither {names}, which list what is trained on")
    else:
        every = listed_in(data, embeddings, regions)
        held = spread(settings.hold_out, len(every.rows), data)
        learned = every.of(np.setdiff1d(np.arange(len(every.rows)), held))
        judged = every.of(held) if held else None

    def examples(listed: Listed, training: bool) -> EmbeddedPatches:
        ways: dict[str, Any] = {"side": settings.window, "seed": settings.seed}
        return EmbeddedPatches(
            listed, patches, of_regions, drop=settings.drop if training else 0.0, flip=training, **ways
        )

    return examples(learned, True), None if judged is None else examples(judged, False)


def only_features(data: Path, magnification: str) -> Path:
    """The file of embeddings of the authors' folder, with the dataset of a magnification.

    Raises:
        ValueError: there is none, or there are several.
    """
    files = sorted((data / FEATURES).glob("*.h5"))
    if len(files) != 1:
        has = f"holds {', '.join(file.name for file in files)}" if files else "holds no .h5"
        raise ValueError(f"{data / FEATURES} {has}; name one with `embeddings`, as FILE.h5:/feat_{magnification}")
    return Path(f"{files[0]}:/feat_{magnification}")


def split_of(data: Path, split: str, magnification: str, patches: Any, regions: Any) -> Listed | None:
    """The authors' list of a split; None: there is none.

    Raises:
        ValueError: a file is a pickle, lacks a table, or names patches that there are not.
    """
    files = [data / "train_test_split" / name.format(split) for name in SPLITS]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    names = plain(data / LISTS.format(magnification))
    keys = {"rows": f"indices_{split}_{magnification}"}
    counts = {"rows": min(len(patches), len(names))}
    if regions is not None:
        keys["region_rows"], counts["region_rows"] = f"indices_{split}_5x", len(regions)
    numbers = {field: plain(file, key).astype(np.int64) for field, key in keys.items()}
    for field, column in numbers.items():
        if len(column) and not 0 <= column.min() <= column.max() < counts[field]:
            raise ValueError(
                f"{file}: {keys[field]} goes from {column.min()} to {column.max()} but there are {counts[field]} "
                "patches with embeddings"
            )
    if len({len(column) for column in numbers.values()}) > 1 or not len(numbers["rows"]):
        raise ValueError(f"{file}: {' and '.join(keys.values())} are empty, or not of one length")
    return Listed(data / "pyramid", names[numbers["rows"]], **numbers)


def plain(file: Path, key: str | None = None) -> np.ndarray:
    """An array of numbers or words from a .npy, or a table of a .npz.

    Raises:
        ValueError: it is not there, or is a pickle.
    """
    try:
        loaded = np.load(file, allow_pickle=False)
        return loaded if key is None else loaded[key]
    except KeyError:
        raise ValueError(f"{file} has no table {key}; it has {', '.join(loaded.files)}") from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} cannot be read ({' '.join(str(error).split())})") from None
    except ValueError:
        raise ValueError(
            f"{file} holds Python objects, which are not opened; where you trust it, save it once as plain words: "
            "numpy.save(FILE, numpy.load(FILE, allow_pickle=True).astype(str))"
        ) from None


def listed_in(data: Path, embeddings: Path, regions: Path | None) -> Listed:
    """The pictures of a folder that a file of ``engine.embed`` names.

    Raises:
        ValueError: it names none, or the regions' file others.
    """
    names = names_of(embeddings, "`embeddings`")
    missing = next((name for name in names if not (data / name).is_file()), None)
    if missing is not None:
        raise ValueError(f"`embeddings` {embeddings} names {missing}, which is not in {data}")
    listed = Listed(data, np.array(names), np.arange(len(names)))
    if regions is None:
        return listed
    row_of = {name: row for row, name in enumerate(names_of(regions, "`region_embeddings`"))}
    lacking = next((name for name in names if name not in row_of), None)
    if lacking is not None:
        raise ValueError(f"`region_embeddings` {regions} does not name {lacking}, which `embeddings` has")
    return replace(listed, region_rows=np.array([row_of[name] for name in names]))


def names_of(file: Path, option: str) -> list[str]:
    """The names that ``engine.embed`` wrote beside the embeddings of a folder.

    Raises:
        ValueError: there are none.
    """
    path, _ = split_dataset(file)
    try:
        names = np.asarray(read_rows(Path(f"{path}:/names"), option)).ravel()
    except ValueError:
        raise ValueError(
            f"{option} {file} names no pictures; make it by engine.embed FOLDER, or lay `data` out as the authors do"
        ) from None
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]


# ---- the network --------------------------------------------------------------------------------


def large_image_task(
    data: Path,
    out: Path,
    settings: LargeImageSettings,
    *,
    embeddings: Path | None,
    regions: Path | None,
    magnification: str,
    vae: Path | None,
    init: Path | None,
    ranks: Ranks,
    device: str,
) -> Task:
    """The training that the settings ask for. Collective.

    Args:
        embeddings, regions, magnification: See ``datasets``.
        vae: Autoencoder that is copied to ``out``; None: it is there.
        init: Model folder, or a checkpoint of latent diffusion, whose U-Net the training starts from.
    Raises:
        ValueError: the data, the autoencoder or the start weights do not fit the settings.
    """
    learned, judged = ranks.agree(lambda: datasets(data, embeddings, regions, magnification, settings))
    ranks.agree(lambda: learned.check(ranks.rank, ranks.size))
    if judged is not None:
        ranks.agree(lambda: judged.check(ranks.rank, ranks.size))
    codec = autoencoder_of(vae, out, {}, ranks, device)
    side, channels = ranks.agree(lambda: latents_of(codec, settings))
    torch.manual_seed(settings.seed)
    unet = ranks.agree(lambda: unet_of(settings, side, channels))
    embedder = Embedder(
        learned.patches.shape[-1],
        settings.token_width,
        0 if learned.regions is None else learned.regions.shape[-1],
        normalize=True,
    )
    network = Conditioned(unet, embedder)
    if init is not None:
        ranks.agree(lambda: start(network, settings, side, channels, init))
    preset, latents = PRESETS["large-image"], (channels, side, side)
    scheduler = scheduler_of(settings.prediction)
    card = {
        "condition": "embedding",
        "space": "latents",
        "patch_size": side,
        "pixel_size_um": settings.pixel_size,
        "defaults": latents_defaults(side, steps=50, **preset["defaults"]),
    }

    def picture(averaged: nn.Module) -> np.ndarray:
        windows = Windows((judged or learned).example, 1, latents)
        return sample_grid(averaged, windows, scheduler, codec, device)

    kinds = {"unet": ["diffusers", "UNet2DConditionModel"], "embedder": ["slidefield", "Embedder"]}
    return Task(
        network,
        evaluate,
        scheduler,
        card,
        {**kinds, "vae": ["diffusers", codec.kind]},
        Windows(learned.example, settings.seed, latents),
        None if judged is None else Windows(judged.example, settings.seed, latents),
        picture,
        "mse",
        settings.timesteps,
        f"{len(learned)} patches" + (f", {len(judged)} held out" if judged else ""),
        settings.validation_windows,
        codec,
        lambda averaged: {"unet": averaged.unet, "embedder": averaged.embedder},  # type: ignore[dict-item]
    )


def evaluate(network: nn.Module, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return network(x, t, inputs["patch"], inputs.get("region"))


def latents_of(codec: LatentCodec, settings: LargeImageSettings) -> tuple[int, int]:
    """Side and channels of a window's latents.

    Raises:
        ValueError: the window cannot be halved as often as the networks do.
    """
    config: Any = codec.network.config
    factor, halved = 2 ** (len(config["block_out_channels"]) - 1), 2 ** (len(settings.channel_mult) - 1)
    if settings.window % (factor * halved):
        raise ValueError(
            f"`window` {settings.window} cannot be halved as often as the autoencoder and `channel_mult` say; use "
            f"multiples of {factor * halved}"
        )
    return settings.window // factor, int(config["latent_channels"])


def published_settings(settings: LargeImageSettings, side: int, channels: int) -> dict[str, Any]:
    """``unet_config.params`` as the authors' YAML has them."""
    return {
        "image_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "model_channels": settings.model_channels,
        "attention_resolutions": list(settings.attention),
        "num_res_blocks": settings.blocks,
        "channel_mult": list(settings.channel_mult),
        "num_heads": settings.heads,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": settings.token_width,
    }


def unet_of(settings: LargeImageSettings, side: int, channels: int) -> nn.Module:
    """A U-Net of diffusers with random weights, whose blocks begin as nothing, as latent diffusion's do.

    Raises:
        ValueError: diffusers has no such network, or is not installed.
    """
    from engine.models.folder import diffusers_class

    config = {k: v for k, v in unet_config(published_settings(settings, side, channels)).items() if k[0] != "_"}
    try:
        unet = diffusers_class("UNet2DConditionModel")(**config)
    except Exception as error:  # diffusers' network says in its own ways what it cannot be
        raise ValueError(f"there is no such U-Net: {' '.join(str(error).split())}") from None
    for name, module in unet.named_modules():
        if name.rpartition(".")[2] in LAST:
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return unet.train().requires_grad_(True)


def start(network: Conditioned, settings: LargeImageSettings, side: int, channels: int, init: Path) -> None:
    """Take the U-Net of a model folder or of a checkpoint, and a folder's token layers where they fit.

    Raises:
        ValueError: it is neither, or a network of another shape.
    """
    if init.is_file():
        checkpoint = open_checkpoint(init)
        state = checkpoint.get("state_dict", checkpoint)
        tensors = unet_tensors(below(state, U_NET) or below(state, ""), published_settings(settings, side, channels))
        take_weights(network.unet, tensors, init)
        return
    start_weights(network.unet, network.unet.config, init)  # type: ignore[arg-type]
    take_embedder(network.embedder, init)


def scheduler_of(prediction: str = "epsilon") -> dict[str, Any]:
    """The published noise, and the levels as the authors' notebook of large images has them.

    Their sampler tells the network one timestep more than it is at; this does not, for the training does not.
    """
    preset = {key: value for key, value in PRESETS["large-image"]["scheduler"].items() if key[:7] != "network"}
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "prediction_type": PREDICTIONS[prediction],
        "clip_sample": False,
        **preset,
    }


def sample_grid(
    network: nn.Module, windows: Windows, scheduler: dict[str, Any], codec: LatentCodec, device: str
) -> np.ndarray:
    """A row of patches, and below each a sample of its embedding: uint8 (h, w, 3)."""
    batch, schedule = windows.batch(range(SHOWN), stream=1), Schedule.from_config(scheduler)
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    levels = schedule.timesteps(LEVELS).tolist()
    made = denoise(lambda x, t: evaluate(network, x, t, inputs), schedule, batch.noise.to(device), levels)
    with torch.no_grad():
        samples = to_image(codec.decode(made))
    return image_grid(np.concatenate([to_image(batch.x0), samples]), SHOWN)
