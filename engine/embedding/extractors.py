"""The extractors that sets are compared by: the embedded one, a network of the user's, or FID's Inception."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.embedding.appearance import NAME as APPEARANCE
from engine.embedding.extractor import CONFIG, Extractor, extractor_of, function_named, network_in, sha256_of
from engine.storage.settings_file import read_json_object

EMBEDDED, INCEPTION = "embedded", "inception"
FILES = (".pth", ".pt")  # of Inception weights
WAY = (
    "name embedded, a folder with a network and its config.json, module:function, or the file of FID's Inception "
    "weights (weights-inception-2015-12-05-6726825d.pth)"
)


@dataclass(frozen=True)
class FeatureExtractor:
    """Crops to features, checked where it is called.

    Args:
        extractor: What makes them, and knows its name and hash.
        kind: ``inception`` of FID's Inception, ``clip`` of CLIP and its kin; empty: of others.
    """

    extractor: Extractor
    kind: str = ""

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def hash(self) -> str:
        return self.extractor.hash

    def __call__(self, pixels: np.ndarray, named: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 (n, D) and (n, K): features of crops uint8 (n, p, p, 3), and logits of classes or None. Local.

        Args:
            named: Name of one of the crops, for messages.
        Raises:
            ValueError: it failed, or returned something else.
        """
        return self.extractor.with_logits(pixels, named)


def feature_extractor(text: str, device: str = "cpu", option: str = "features") -> FeatureExtractor:
    """The extractor that a text names.

    Args:
        text: ``embedded``; ``appearance``, that of engine.embed; ``module:function``; a folder with a network; or
            ``inception:FILE``, or FILE alone, with the weights of FID's Inception.
        device: Where a network runs.
        option: Name of what gave the text, for messages.
    Raises:
        ValueError: it names none, or what it names cannot be loaded.
    """
    path = Path(text.removeprefix(f"{INCEPTION}:"))
    if text == EMBEDDED:
        return FeatureExtractor(embedded(device, option))
    if text == APPEARANCE:
        return FeatureExtractor(extractor_of(text, device))
    if text.startswith(f"{INCEPTION}:") or path.is_file():
        return FeatureExtractor(inception(path, device, option), "inception")
    if path.is_dir():
        return FeatureExtractor(network_in(path, device, option), "clip" if is_clip(path) else "")
    if text == INCEPTION:
        raise ValueError(f"`{option}` {text} names no weights, and none are downloaded; pass {INCEPTION}:FILE.pth")
    if ":" not in text:
        raise ValueError(f"`{option}` {text} is not there; {WAY}")
    return FeatureExtractor(function_named(text, option))


def is_clip(folder: Path) -> bool:
    """Whether a folder of transformers says that its network is CLIP, or of its kin."""
    config = folder / CONFIG
    return config.is_file() and "clip" in str(read_json_object(config, str(config)).get("model_type", "")).lower()


def embedded(device: str, option: str) -> Extractor:
    """The features that need no download."""
    import engine.embedding.embedded_features as own

    network = own.embedded_network(device)
    files = [Path(own.__file__), *sorted((own.EMBEDDED / "vae").iterdir())]
    return Extractor(EMBEDDED, sha256_of(files), of_pixels(network, device), option)


def inception(path: Path, device: str, option: str) -> Extractor:
    """FID's Inception with weights from a file; a file of pytorch-fid's own class has no head, and gives no logits.

    Raises:
        ValueError: the file holds something else.
    """
    from engine.models.networks.inception import FidInception, by_our_names
    from engine.models.without_weights import without_weights

    tensors = by_our_names(tensors_in(path, option))
    with without_weights():
        network = FidInception()
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    headless = not any(key.startswith("fc.") for key in tensors)
    wanted = {key: value for key, value in own.items() if not (headless and key.startswith("fc."))}
    for key in (*wanted, *tensors):
        if key not in wanted or key not in tensors or wanted[key].shape != tensors[key].shape:
            raise ValueError(
                f"`{option}` {path} holds no weights of FID's Inception ({key[:80]} differs); pass "
                "weights-inception-2015-12-05-6726825d.pth of torch-fidelity, or pytorch-fid's file of that date"
            )
    network.load_state_dict({**tensors, **counters(network)}, strict=not headless, assign=True)
    function = network.features if headless else network.forward
    if headless:
        del network.fc
    network.to(device).eval().requires_grad_(False)
    return Extractor(f"{INCEPTION}:{path}", sha256_of([path]), of_pixels(function, device), option)


def counters(network: Any) -> Mapping[str, Any]:
    """The numbers of batches that normalisations have seen, which say nothing here."""
    import torch

    return {key: torch.zeros((), dtype=torch.long) for key in network.state_dict() if key.endswith("tracked")}


def tensors_in(path: Path, option: str) -> dict[str, Any]:
    """The tensors in a file, as float32.

    Raises:
        ValueError: it is not there, or holds something else.
    """
    from engine.models.convert.checkpoint import open_checkpoint

    if not path.is_file() or path.suffix not in FILES:
        raise ValueError(f"`{option}` {path} is no file of weights ({', '.join(FILES)}); {WAY}")
    state = open_checkpoint(path)
    return {key: value.float() for key, value in state.items() if hasattr(value, "float")}


def of_pixels(network: Callable[[Any], Any], device: str) -> Callable[[np.ndarray], Any]:
    """A function of uint8 (n, p, p, 3) from a network of pixels 0 to 255 (n, 3, p, p)."""
    import torch

    @torch.inference_mode()
    def embed(pixels: np.ndarray) -> Any:
        return network(torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2))

    return embed
