"""Networks of a model folder: ``unet/``, ``vae/`` and ``embedder/`` with ``config.json`` and safetensors.

Own classes are read and written here; diffusers' are read, and imported only where a folder has one.

Shape suffixes: B batch, C latent channels, c image channels, H W latents, h w pixels, D R embeddings, T tokens,
K classes or channels of a map.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.codec import LatentCodec
from engine.models.files import CLASSES as CLASS_TABLE
from engine.models.files import WEIGHTS, read_json, read_parts
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.models.networks.embedder import Embedder
from engine.models.networks.mask_unet import LabelUNet, MaskUNet
from engine.models.networks.spade_unet import SpadeUNet
from engine.models.optimize import compiled, prepare_for_inference

Network = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
Embed = Callable[[Tensor, Tensor | None], Tensor]
Evaluate = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]

CLASSES: dict[str, type[nn.Module]] = {
    "PatchAutoencoder": PatchAutoencoder,
    "MaskUNet": MaskUNet,
    "LabelUNet": LabelUNet,
    "SpadeUNet": SpadeUNet,
    "Embedder": Embedder,
}
# Without group normalisation, or after convolutions of standardised weights, which have no mean to speak of.
CHANNELS_LAST = (PatchAutoencoder, MaskUNet, LabelUNet)
DIFFUSERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel", "UNet2DModel", "UNet2DConditionModel")
EVALUATE: dict[str, Evaluate] = {
    "MaskUNet": lambda network, x, t, given: network(x, t, given["label"], given["mask"]),
    "LabelUNet": lambda network, x, t, given: network(x, t, given["label"]),
    "SpadeUNet": lambda network, x, t, given: network(x, t, given["map"]),
    "UNet2DModel": lambda network, x, t, given: network(x, t, return_dict=False)[0],
    "UNet2DConditionModel": lambda network, x, t, given: network(x, t, given["tokens"], return_dict=False)[0],
}
# Names of attention weights in autoencoders that were saved before diffusers 0.12.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Model:
    """A model's networks, ready to run.

    Args:
        network: (x (B, C, H, W), t (B,) as in the schedule, inputs) -> output, in the model's prediction type; twice
            as many channels where the variance is learned. The inputs are, by the network's class: MaskUNet
            ``label`` (B,) and ``mask`` (B, 1, H, W); LabelUNet ``label`` (B,), -1 the null; UNet2DConditionModel
            ``tokens`` (B, T, width); SpadeUNet ``map`` (B, K, H, W); UNet2DModel none.
        decode: normalised latents (B, C, H, W) -> pixels (B, c, h, w), about [-1, 1]. None for a model of pixels, and
            where the folder has no autoencoder.
        encode: pixels -> normalised latents, the likeliest ones. None as for ``decode``.
        embed: embeddings of the patch (B, D) and of its region (B, R) or None -> tokens (B, T, width); zeros are the
            null. None where the network takes its tokens as they are, or takes none.
        class_table: embeddings (K, D) of the classes, where the folder has them.
    """

    network: Network
    decode: Callable[[Tensor], Tensor] | None
    encode: Callable[[Tensor], Tensor] | None = None
    embed: Embed | None = None
    class_table: Tensor | None = None


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", compile: bool = False) -> Model:
    """Load the networks of a model folder for inference.

    Args:
        compile: the network, at its first call, and on a GPU the decoder: on a CPU decoders win 2 % or lose.
    Raises:
        ValueError: parts that are missing or do not fit each other, or that need a package that is not installed.
    """
    parts = read_parts(folder)
    network = load_network(folder, parts.scheduler, dtype, device, compile)
    codec = None
    if "vae" in parts.folders and parts.facts.get("space") != "pixels":
        vae = prepare_for_inference(load_part(parts.folders["vae"]), device)
        codec = LatentCodec(place(vae, dtype, device), parts.configs["vae"], parts.facts, compile and device != "cpu")
    return Model(
        network,
        codec.decode if codec else None,
        codec.encode if codec else None,
        load_embedder(parts.folders["embedder"], device) if "embedder" in parts.folders else None,
        load_classes(folder / "embedder" / CLASS_TABLE, device),
    )


def load_network(
    folder: Path, scheduler: dict[str, Any], dtype: torch.dtype, device: str, compile: bool = False
) -> Network:
    """The network of ``folder/unet``, called alike whatever its class."""
    name = read_json(folder / "unet" / "config.json").get("_class_name")
    network = load_part(folder / "unet")
    network = place(prepare_for_inference(network, device) if name in CLASSES else network, dtype, device)
    if name not in EVALUATE:
        raise ValueError(f"{folder / 'unet'}: {name} is no denoising network; known: {', '.join(EVALUATE)}")
    evaluate: Callable[..., Tensor] = partial(EVALUATE[name], network)
    evaluate = compiled(evaluate, device) if compile else evaluate
    offset = int(scheduler.get("network_timestep_offset", 0))
    scale = float(scheduler.get("network_timestep_scale", 1.0))

    order = memory_order(network, device)

    def call(x_BCHW: Tensor, t_B: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        t = t_B + offset
        return evaluate(x_BCHW.contiguous(memory_format=order), t if scale == 1 else t * scale, inputs)

    return call


def place(network: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """On its device, in its type and memory order; past diffusers' own ``to``, which warns of what is done on purpose.

    Channels last is the faster order. On CPU its group normalisation takes variances as E[x^2] - E[x]^2 and loses
    digits where the mean is large: it is left to networks that have no such features there. To the others it would give
    5 % at most (``benchmarks.network``).
    """
    nn.Module.to(network, device, dtype, memory_format=memory_order(network, device))  # type: ignore[call-overload]
    return network


def memory_order(network: nn.Module, device: str) -> torch.memory_format:
    fast = device != "cpu" or isinstance(network, CHANNELS_LAST)
    return torch.channels_last if fast else torch.contiguous_format


def load_embedder(folder: Path, device: str) -> Embed:
    """From embeddings to tokens, in float32."""
    embedder = load_part(folder).to(device)

    def embed(patch_BD: Tensor, region_BR: Tensor | None = None) -> Tensor:
        region = None if region_BR is None else region_BR.to(device).float()
        return embedder(patch_BD.to(device).float(), region)

    return embed


def load_classes(path: Path, device: str) -> Tensor | None:
    from safetensors.torch import load_file

    return load_file(path)["embeddings"].float().to(device) if path.exists() else None


def load_part(folder: Path) -> nn.Module:
    """A network in float32 and evaluation mode.

    Raises:
        ValueError: an unknown class, a setting it does not take, or weights that do not fit it.
    """
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    try:
        network = build(config)
        tensors = {k: v.float() for k, v in load_file(folder / WEIGHTS).items()}
        network.load_state_dict(renamed(tensors) if name in DIFFUSERS else tensors, assign=True)
    except (TypeError, RuntimeError) as error:
        lines = " ".join(str(error).split())
        raise ValueError(f"{folder}: weights and config.json do not fit each other: {lines[:200]}") from None
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from None
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        raise ValueError(f"{folder}: {name} keeps more than the weights file holds; it is not supported")
    return network.eval().requires_grad_(False)


def check_folder(folder: Path) -> None:
    """Refuse weights that are not those of the networks that the configurations describe; reads no weight.

    Raises:
        ValueError: naming the first that differs.
    """
    from safetensors import safe_open

    for name, path in read_parts(folder).folders.items():
        with safe_open(path / WEIGHTS, "pt") as weights:
            shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
        config = read_json(path / "config.json")
        try:
            check_fit(config, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / name}: {error}") from None


def check_fit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are not those of the network that a configuration describes.

    Raises:
        ValueError: naming the first that differs.
    """
    wanted = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    named = renamed(tensors) if config.get("_class_name") in DIFFUSERS else tensors
    given = {key: tuple(value.shape) for key, value in named.items()}
    if wanted != given:
        raise ValueError(f"weights and config.json do not fit each other: {difference(wanted, given)}")


def difference(wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> str:
    """The first way in which two tables of shapes differ.

    >>> difference({"a": (3,)}, {"a": (4,)})
    'a has the shape (4,), not (3,)'
    """
    if missing := sorted(wanted.keys() - given.keys()):
        return f"{missing[0]} is missing ({len(missing)} in all)"
    if extra := sorted(given.keys() - wanted.keys()):
        return f"{extra[0]} has no place ({len(extra)} in all)"
    key = next(key for key in wanted if wanted[key] != given[key])
    return f"{key} has the shape {given[key]}, not {wanted[key]}"


def build(config: dict[str, Any]) -> nn.Module:
    """The network of a configuration, without memory for its weights: they are assigned, or compared.

    Raises:
        ValueError: an unknown class, or diffusers is not installed.
    """
    name = config.get("_class_name")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        if name in CLASSES:
            return CLASSES[name](**settings)
        if name in DIFFUSERS:
            return diffusers_class(name).from_config(settings)
    raise ValueError(f"_class_name is {name!r}; known: {', '.join((*CLASSES, *DIFFUSERS))}")


def diffusers_class(name: str) -> Any:
    """A class of diffusers.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise ValueError(
            f"{name} is a network of diffusers, which is not installed: pip install 'slidefield[models]'"
        ) from None
    return getattr(diffusers, name)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers' networks in their names of today, and 1 x 1 convolutions of attention as matrices."""
    found = {}
    for key, tensor in tensors.items():
        before, _, last = key.rpartition(".")
        stem, _, layer = before.rpartition(".")
        if ".attentions." in key and layer in OLD_NAMES:
            key, tensor = f"{stem}.{OLD_NAMES[layer]}.{last}", tensor.flatten(1) if tensor.ndim == 4 else tensor
        found[key] = tensor
    return found


def save_part(network: nn.Module, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a network of our own as ``config.json`` and safetensors, through a temporary and a rename."""
    config = {"_class_name": type(network).__name__, **network.config}  # type: ignore[dict-item]
    save_tensors(config, {k: v.detach().to("cpu", dtype) for k, v in network.state_dict().items()}, folder)


def save_tensors(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a part of a model folder, through a temporary and a rename."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    temporary.rename(folder / WEIGHTS)


def device_of(name: str, local_rank: int) -> str:
    """The device of a rank: its share of the visible GPUs by local rank, or the CPU.

    Raises:
        ValueError: cuda was asked for and is not there.
    """
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise ValueError(
            "`device` cuda: torch sees no GPU here; use `device` cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return f"cuda:{local_rank % count}" if count else "cpu"
