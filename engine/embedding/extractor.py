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
from engine.embedding.saved_network import PREPROCESSOR, Normalisation, preprocessing, saved_network
from engine.embedding.saved_network import WEIGHTS as SAVED
from engine.messages import quoted
from engine.storage.settings_file import read_json_object

WEIGHTS = (".pt", ".pth", ".ts", ".torchscript")
CONFIG = "config.json"


@dataclass(frozen=True)
class Extractor:
    """A function from patches to embeddings, checked where it is called.

    Args:
        name: What the user called it.
        hash: sha256 of the module's file, or of the folder's; it does not cover what the module itself reads.
        function: From uint8 (n, p, p, 3) to float (n, D), or to a pair of that and the logits of classes (n, K).
        option: Name of the option that named it, for messages.
    """

    name: str
    hash: str
    function: Callable[[np.ndarray], Any]
    option: str = "with"

    def __call__(self, patches: np.ndarray, named: Callable[[int], str]) -> np.ndarray:
        """float32 (n, D): the embeddings of patches, uint8 (n, p, p, 3).

        Args:
            named: Name of one of them, for messages.
        Raises:
            ValueError: it failed, or returned something else.
        """
        return self.with_logits(patches, named)[0]

    def with_logits(self, patches: np.ndarray, named: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 (n, D) and (n, K): embeddings, and logits where there are such; as ``__call__``."""
        try:
            made = self.function(patches)
            pair: tuple[Any, Any] = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
            values, logits = (np.asarray(v.detach().cpu() if hasattr(v, "detach") else v) for v in pair)
        except (Exception, SystemExit) as error:  # somebody else's code
            text = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"`{self.option}` {self.name} failed at the batch that begins with {named(0)}: {text}"
            ) from None
        return self.checked(values, len(patches), named), (
            None if pair[1] is None else self.checked(logits, len(patches), named)
        )

    def checked(self, values: np.ndarray, count: int, named: Callable[[int], str]) -> np.ndarray:
        """float32 (n, D): the same.

        Raises:
            ValueError: they are none such.
        """
        if values.ndim != 2 or len(values) != count or not values.size or values.dtype.kind != "f":
            raise ValueError(
                f"`{self.option}` {self.name} returned {values.dtype} of shape {values.shape} for {count} patches; "
                f"expected floating-point numbers of shape ({count}, D)"
            )
        values = values.astype(np.float32)
        if not (finite := np.isfinite(values).all(1)).all():
            first = int(np.flatnonzero(~finite)[0])
            raise ValueError(f"`{self.option}` {self.name} returned values that are not finite for {named(first)}")
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
    return function_named(text, "with")


def function_named(text: str, option: str) -> Extractor:
    """The function that ``module:function`` names."""
    function = imported(text, option, "one from patches uint8 (n, p, p, 3) to embeddings (n, D)")
    file = getattr(sys.modules[text.partition(":")[0]], "__file__", None)
    return Extractor(text, sha256_of([Path(file)]) if file else "", function, option)


def network_in(folder: Path, device: str, option: str = "with") -> Extractor:
    """The network in a folder, and how its input is made: TorchScript, or what timm or transformers saved.

    ``mean`` and ``std`` in ``config.json`` are those of each channel of pixels in [0, 1]; ``size``, where it is given,
    is the side that patches are resized to. timm's ``pretrained_cfg`` or transformers' ``preprocessor_config.json`` may
    hold them. A network that returns a pair gives features and the logits of classes.

    Raises:
        ValueError: either is missing or something else.
    """
    saved = (folder / SAVED).is_file()
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS) if not saved else [folder / SAVED]
    if len(files) != 1:
        held = f"{len(files)} files" if files else "no file"
        raise ValueError(
            f"`{option}` {folder} holds {held} of TorchScript ({', '.join(WEIGHTS)}); it takes one, or {SAVED} of timm "
            "or transformers"
        )
    mean, std, size = normalisation(folder / CONFIG, preprocessing(folder) if saved else {})
    import torch

    network = saved_network(folder, option) if saved else torchscript(files[0], device)

    @torch.inference_mode()
    def embed(patches: np.ndarray) -> Any:
        x = torch.from_numpy(patches).to(device).permute(0, 3, 1, 2).float() / 255
        if size is not None and size != x.shape[-1]:
            x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True)
        centre, spread = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
        made = network((x - centre) / spread)
        return tuple(part.float() for part in made) if isinstance(made, tuple) else made.float()

    described = [folder / CONFIG, *(path for path in [folder / PREPROCESSOR] if path.is_file())]
    return Extractor(str(folder), sha256_of([files[0], *described]), embed, option)


def torchscript(file: Path, device: str) -> Any:
    """The network in a file of TorchScript.

    Raises:
        ValueError: it is none.
    """
    import torch

    try:
        return torch.jit.load(str(file), map_location=device).eval()
    except Exception as error:  # torch raises its own kinds
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file} is no TorchScript ({why}); save it with torch.jit.save") from None


def normalisation(path: Path, other: dict[str, Any] | None = None) -> Normalisation:
    """Mean, spread and side of a network's input.

    Args:
        other: What another file says of them.
    Raises:
        ValueError: they are not there, or are no such numbers.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is not there; write it with the mean and std of the network's input, such as "
            '{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 224}'
        )
    config = read_json_object(path, str(path))
    own = config.get("pretrained_cfg") or {}
    if not isinstance(own, dict):
        raise ValueError(f"{path}: pretrained_cfg is {quoted(own)}; expected an object with mean and std")
    config = {**config, **own, **(other or {})}
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
