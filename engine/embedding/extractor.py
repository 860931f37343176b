"""What makes embeddings of patches: a function of one's own, or a network in TorchScript with its normalisation."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import engine.embedding.appearance
from engine.command_line import imported
from engine.embedding.appearance import NAME, appearance
from engine.storage.settings_file import read_json_object

WEIGHTS = (".pt", ".pth", ".ts", ".torchscript")
CONFIG = "config.json"


@dataclass(frozen=True)
class Extractor:
    """A function from patches to embeddings, checked where it is called.

    Args:
        name: What the user called it.
        hash: sha256 of the module's file, or of the folder's; it does not cover what the module itself reads.
        function: From uint8 (n, p, p, 3) to float (n, D).
    """

    name: str
    hash: str
    function: Callable[[np.ndarray], Any]

    def __call__(self, patches: np.ndarray, named: Callable[[int], str]) -> np.ndarray:
        """float32 (n, D): the embeddings of patches, uint8 (n, p, p, 3).

        Args:
            named: Name of one of them, for messages.
        Raises:
            ValueError: it failed, or returned something else.
        """
        try:
            values = self.function(patches)
            values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
        except (Exception, SystemExit) as error:  # somebody else's code
            text = f"{type(error).__name__}: {error}"
            raise ValueError(f"`with` {self.name} failed at the batch that begins with {named(0)}: {text}") from None
        if values.ndim != 2 or len(values) != len(patches) or not values.size or values.dtype.kind != "f":
            raise ValueError(
                f"`with` {self.name} returned {values.dtype} of shape {values.shape} for {len(patches)} patches; "
                f"expected floating-point numbers of shape ({len(patches)}, D)"
            )
        values = values.astype(np.float32)
        if not (finite := np.isfinite(values).all(1)).all():
            first = int(np.flatnonzero(~finite)[0])
            raise ValueError(f"`with` {self.name} returned values that are not finite for {named(first)}")
        return values


def extractor_of(text: str, device: str) -> Extractor:
    """The extractor that ``module:function`` or a folder names; ``appearance`` is the one in the package.

    Args:
        device: Device of a folder's network.
    Raises:
        ValueError: it is neither, or cannot be loaded.
    """
    folder = Path(text)
    if text == NAME:
        return Extractor(text, sha256_of([Path(str(engine.embedding.appearance.__file__))]), appearance)
    if folder.is_dir():
        return network_in(folder, device)
    if ":" not in text:
        raise ValueError(f"`with` {text} is no folder, nor module:function; name one of them, or appearance")
    function = imported(text, "with", "one from patches uint8 (n, p, p, 3) to embeddings (n, D)")
    file = getattr(sys.modules[text.partition(":")[0]], "__file__", None)
    return Extractor(text, sha256_of([Path(file)]) if file else "", function)


def network_in(folder: Path, device: str) -> Extractor:
    """The network in a folder: one file of TorchScript, and ``config.json`` with how its input is made.

    ``mean`` and ``std`` are those of each channel of pixels in [0, 1]; ``size``, where it is given, is the side that
    patches are resized to. timm's ``pretrained_cfg`` may hold them.

    Raises:
        ValueError: either is missing or something else.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    if len(files) != 1:
        held = f"{len(files)} files" if files else "no file"
        raise ValueError(f"`with` {folder} holds {held} of TorchScript ({', '.join(WEIGHTS)}); it takes one")
    mean, std, size = normalisation(folder / CONFIG)
    import torch

    try:
        network = torch.jit.load(str(files[0]), map_location=device).eval()
    except Exception as error:  # torch raises its own kinds
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{files[0]} is no TorchScript ({why}); save it with torch.jit.save") from None

    @torch.inference_mode()
    def embed(patches: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(patches).to(device).permute(0, 3, 1, 2).float() / 255
        if size is not None and size != x.shape[-1]:
            x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True)
        centre, spread = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
        return network((x - centre) / spread).float()

    return Extractor(str(folder), sha256_of([files[0], folder / CONFIG]), embed)


def normalisation(path: Path) -> tuple[list[float], list[float], int | None]:
    """Mean, spread and side of a network's input.

    Raises:
        ValueError: they are not there, or are no such numbers.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is not there; write it with the mean and std of the network's input, such as "
            '{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 224}'
        )
    config = read_json_object(path, str(path))
    config = {**config, **(config.get("pretrained_cfg") or {})}
    three = [config.get("mean"), config.get("std")]
    for name, values in zip(("mean", "std"), three, strict=True):
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
            raise ValueError(f"{path}: {name} is {values}; expected three numbers, one a channel")
    if not all(value > 0 for value in config["std"]):
        raise ValueError(f"{path}: std is {config['std']}; expected numbers above 0")
    size = config.get("size", (config.get("input_size") or [None])[-1])
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"{path}: size is {size}; expected the side of the network's input, px")
    return [float(v) for v in config["mean"]], [float(v) for v in config["std"]], size


def sha256_of(files: list[Path]) -> str:
    """The sha256 of files, one after another with their names and lengths."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                total.update(block)
    return total.hexdigest()
