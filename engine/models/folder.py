"""Networks of a model folder: ``unet/``, ``vae/`` and ``embedder/`` with ``config.json`` and safetensors.

Networks of our own classes are read and written here. Those of diffusers are read; diffusers itself is imported only
where a folder has one.

Shape suffixes: B batch, C latent channels, c image channels, H W latents, h w pixels, D R embeddings, T tokens,
K channels of a map.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.codec import LatentCodec
from engine.models.files import WEIGHTS, read_json, read_parts
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.models.networks.embedder import Embedder
from engine.models.networks.mask_unet import LabelUNet, MaskUNet
from engine.models.networks.resnet import ResNet
from engine.models.networks.spade_unet import SpadeUNet
from engine.models.optimize import compiled, prepare_for_inference
from engine.models.without_weights import without_weights
from engine.storage.files import whole_file, write_json

Network = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
Embed = Callable[[Tensor, Tensor | None], Tensor]
Evaluate = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]

CLASSES: dict[str, type[nn.Module]] = {
    "PatchAutoencoder": PatchAutoencoder,
    "MaskUNet": MaskUNet,
    "LabelUNet": LabelUNet,
    "SpadeUNet": SpadeUNet,
    "Embedder": Embedder,
    "ResNet": ResNet,
}
# Classes that run channels last on a CPU too. Group normalisation loses digits there where features have a large mean
# (see ``place``): the first of these has none, the others normalise features whose mean is near 0.
CHANNELS_LAST = (PatchAutoencoder, MaskUNet, LabelUNet)
DIFFUSERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel", "UNet2DModel", "UNet2DConditionModel")
EVALUATE: dict[str, Evaluate] = {
    "MaskUNet": lambda network, x, t, given: network(x, t, given["label"], given["mask"]),
    "LabelUNet": lambda network, x, t, given: network(x, t, given["label"]),
    "SpadeUNet": lambda network, x, t, given: network(x, t, given["map"]),
    "UNet2DModel": lambda network, x, t, given: network(x, t, return_dict=False)[0],
    "UNet2DConditionModel": lambda network, x, t, given: network(x, t, given["tokens"], return_dict=False)[0],
}
# Names of attention weights in autoencoders that were saved before diffusers 0.12, and their names today.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Model:
    """A model's networks, ready to run.

    Args:
        network: Function of x (B, C, H, W), timesteps t (B,) as in the schedule, and inputs. It returns the network's
            output in the model's prediction type, with twice as many channels where the variance is learned. The
            inputs depend on the network's class: MaskUNet takes ``label`` (B,) and ``mask`` (B, 1, H, W); LabelUNet
            ``label`` (B,), where -1 is the null; UNet2DConditionModel ``tokens`` (B, T, width); SpadeUNet ``map``
            (B, K, H, W); UNet2DModel nothing.
        decode: Function from normalised latents (B, C, H, W) to pixels (B, c, h, w), about [-1, 1]. None for a model
            of pixels, and where the folder has no autoencoder.
        encode: Function from pixels to the likeliest normalised latents. None where ``decode`` is.
        embed: Function from embeddings of the patch (B, D) and of its region (B, R), or None, to tokens
            (B, T, width); zeros are the null. None where the network takes tokens as they are, or takes none.
    """

    network: Network
    decode: Callable[[Tensor], Tensor] | None
    encode: Callable[[Tensor], Tensor] | None = None
    embed: Embed | None = None


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", compile: bool = False) -> Model:
    """Load the networks of a model folder for inference.

    Args:
        folder: Folder of the model.
        dtype: Type that the networks compute in; the embedder computes in float32.
        device: Device that the networks run on.
        compile: Whether the network is compiled, at its first call; on a GPU the decoder is too, while on a CPU that
            gains it 2 % or costs time.
    Raises:
        ValueError: parts are missing or do not fit each other, or need a package that is not installed.
    """
    parts = read_parts(folder)
    network = load_network(folder, parts.scheduler, dtype, device, compile)
    codec = load_codec(folder, dtype, device, compile)
    return Model(
        network,
        codec.decode if codec else None,
        codec.encode if codec else None,
        load_embedder(parts.folders["embedder"], device) if "embedder" in parts.folders else None,
    )


def load_codec(
    folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", compile: bool = False
) -> LatentCodec | None:
    """The autoencoder of a model folder; None: a model of pixels, or a folder without it.

    Raises:
        ValueError: as ``load_model``.
    """
    parts = read_parts(folder)
    if "vae" not in parts.folders or parts.facts.get("space") == "pixels":
        return None
    vae = prepare_for_inference(load_part(parts.folders["vae"]), device)
    return LatentCodec(place(vae, dtype, device), parts.configs["vae"], parts.facts, compile and device != "cpu")


def load_network(
    folder: Path, scheduler: dict[str, Any], dtype: torch.dtype, device: str, compile: bool = False
) -> Network:
    """The network of ``folder/unet`` as ``Model.network``, called the same way whatever its class."""
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
    """Move a network to its device, type and memory order, and return it.

    Channels last is the faster order. On a CPU, though, torch's group normalisation in that order takes variances as
    E[x^2] - E[x]^2 and loses digits where the mean is large, so there only networks without such features run in it.
    The others would gain 5 % at most (``benchmarks.network``).

    diffusers' own ``to`` is passed by: it warns of types that are chosen on purpose.
    """
    nn.Module.to(network, device, dtype, memory_format=memory_order(network, device))  # type: ignore[call-overload]
    return network


def memory_order(network: nn.Module, device: str) -> torch.memory_format:
    fast = device != "cpu" or isinstance(network, CHANNELS_LAST)
    return torch.channels_last if fast else torch.contiguous_format


def load_embedder(folder: Path, device: str) -> Embed:
    """The function from embeddings to tokens, in float32."""
    embedder = load_part(folder).to(device)

    def embed(patch_BD: Tensor, region_BR: Tensor | None = None) -> Tensor:
        region = None if region_BR is None else region_BR.to(device).float()
        return embedder(patch_BD.to(device).float(), region)

    return embed


def load_part(folder: Path) -> nn.Module:
    """Load a network in float32 and evaluation mode.

    Raises:
        ValueError: its class is unknown, does not take a setting, or does not fit the weights.
    """
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    try:
        network = build(config)
        tensors = {k: v.float() for k, v in load_file(folder / WEIGHTS).items()}
        network.load_state_dict(renamed(tensors) if name in DIFFUSERS else tensors, assign=True)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from None
    except Exception as error:  # a network that cannot be built from these settings fails in its own way
        line = " ".join(str(error).split())
        raise ValueError(f"{folder}: weights and config.json do not fit each other: {line[:200]}") from None
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        raise ValueError(f"{folder}: {name} keeps more than the weights file holds; it is not supported")
    return network.eval().requires_grad_(False)


def check_model_folder(folder: Path) -> None:
    """Refuse a folder whose weights are not those of the networks that it configures, or are not finite.

    Names and shapes are compared first; then the weights are read once, one at a time.

    Raises:
        ValueError: the first weight that differs, or that is not finite.
    """
    from safetensors import safe_open

    for path in read_parts(folder).folders.values():
        with safe_open(path / WEIGHTS, "pt") as weights:
            names = list(weights.keys())
            config = read_json(path / "config.json")
            try:
                shapes = {key: weights.get_slice(key).get_shape() for key in names}
                check_fit(config, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
            except Exception as error:  # a network that cannot be built from these settings fails in its own way
                raise ValueError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from None
            for key in names:
                check_finite(weights.get_tensor(key), f"{path / WEIGHTS}: {key}")


def check_finite(tensor: Tensor, what: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        ValueError: naming them, and how many they are.
    """
    values = tensor if tensor.element_size() > 1 else tensor.float()
    if not bool(values.isfinite().all()):
        count = int((~values.isfinite()).sum())
        raise ValueError(f"{what} has {count} of {tensor.numel()} values that are not finite; the training went wrong")


def check_fit(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are not those of the network that a configuration describes.

    Raises:
        ValueError: the first weight that differs.
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
    """The network of a configuration, on the meta device: its weights are assigned later, or compared by shape.

    Raises:
        ValueError: its class is unknown, or is one of diffusers, which is not installed.
    """
    name = config.get("_class_name")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    with without_weights():
        if name in CLASSES:
            return CLASSES[name](**settings)
        if name in DIFFUSERS:
            return diffusers_class(name).from_config(settings)
    raise ValueError(f"_class_name is {name!r}; known: {', '.join((*CLASSES, *DIFFUSERS))}")


def diffusers_class(name: str) -> Any:
    """A network's class in diffusers.

    Raises:
        ValueError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise ValueError(
            f"{name} is a network of diffusers, which is not installed: pip install 'slidefield[models]'"
        ) from None
    return getattr(diffusers, name)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers' networks under today's names; attention's 1 x 1 convolutions become matrices."""
    current = {}
    for key, tensor in tensors.items():
        before, _, last = key.rpartition(".")
        stem, _, layer = before.rpartition(".")
        if ".attentions." in key and layer in OLD_NAMES:
            key, tensor = f"{stem}.{OLD_NAMES[layer]}.{last}", tensor.flatten(1) if tensor.ndim == 4 else tensor
        current[key] = tensor
    return current


def save_part(network: nn.Module, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a network as a part of a model folder; see ``save_tensors``."""
    settings = {key: value for key, value in network.config.items() if key[0] != "_"}  # type: ignore[union-attr, operator]
    config = {"_class_name": type(network).__name__, **settings}
    save_tensors(config, {k: v.detach().to("cpu", dtype) for k, v in network.state_dict().items()}, folder)


def save_tensors(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """Write ``config.json`` and weights of a part of a model folder; each file appears whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / WEIGHTS) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
        temporary.chmod(0o666 & ~umask())  # safetensors lets nobody else read it
        write_json(folder / "config.json", config)


def umask() -> int:
    """The process's mask of permissions; the only way to read it is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def device_of(name: str, local_rank: int) -> str:
    """The device of a rank: one of the visible GPUs, which a node's ranks take in turn, or the CPU.

    Args:
        name: Device that was asked for, ``auto``, ``cpu`` or ``cuda``.
        local_rank: Position of the rank among those of its node.
    Raises:
        ValueError: cuda was asked for, and torch sees no GPU.
    """
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise ValueError(
            "`device` cuda: torch sees no GPU here; use `device` cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    return f"cuda:{local_rank % count}" if count else "cpu"
