"""One interface to our autoencoders and diffusers': normalised latents <-> pixels about [-1, 1].

Shape suffixes: B batch, C latent channels, c image channels, H W latents, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.optimize import compiled


def quantized(network: nn.Module, z_BCHW: Tensor) -> Tensor:
    """Each latent's nearest entry of the codebook, by |z|^2 + |e|^2 - 2 z e as published: ties fall the same way."""
    codebook = network.quantize.embedding.weight  # type: ignore[union-attr]
    z = z_BCHW.permute(0, 2, 3, 1).flatten(0, 2)
    distances = (z**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * z @ codebook.T  # type: ignore[operator]
    nearest = F.embedding(distances.argmin(1), codebook)  # type: ignore[arg-type]
    return nearest.view(len(z_BCHW), *z_BCHW.shape[2:], -1).permute(0, 3, 1, 2)


Apply = Callable[[Any, Tensor], Tensor]
DECODE: dict[str, Apply] = {
    "PatchAutoencoder": lambda network, z: network.decode(z),
    "AutoencoderKL": lambda network, z: network.decode(z).sample,
    "AutoencoderTiny": lambda network, z: network.decode(z).sample,
    "VQModel": lambda network, z: network.decode(quantized(network, z), force_not_quantize=True).sample,
}
ENCODE: dict[str, Apply] = {
    "PatchAutoencoder": lambda network, x: network.encode(x),
    "AutoencoderKL": lambda network, x: network.encode(x).latent_dist.mode(),
    "AutoencoderTiny": lambda network, x: network.encode(x).latents,
    "VQModel": lambda network, x: network.encode(x).latents,
}


class LatentCodec:
    """An autoencoder, with the scales between its own latents and pixels and the normalised ones.

    Args:
        network: Autoencoder, on its device and in its type.
        config: Content of its ``config.json``.
        facts: Content of ``card.json``. ``latents_scale`` or ``latents_std`` is the factor of normalised latents
            before they are decoded; without them the autoencoder's own factor holds. ``pixel_range`` holds the
            autoencoder's values of black and white.
        compile: Whether the decoder is compiled, at its first call.
    Raises:
        ValueError: the network is no autoencoder.
    """

    def __init__(
        self, network: nn.Module, config: Mapping[str, Any], facts: Mapping[str, Any], compile: bool = False
    ) -> None:
        self.network, self.kind = network, str(config.get("_class_name"))
        if self.kind not in DECODE:
            raise ValueError(f"vae/config.json: {self.kind} is no autoencoder; known: {', '.join(DECODE)}")
        if config.get("force_upcast") and next(network.parameters()).dtype == torch.float16:
            network.float()
        weights = next(network.parameters())
        self.dtype, self.device = weights.dtype, weights.device
        self.mean, self.std = statistics(self.kind, config, facts, self.device)
        self.low, self.high = facts.get("pixel_range", (-1.0, 1.0))
        self.apply: Callable[[Tensor], Tensor] = partial(DECODE[self.kind], network)
        if compile:
            self.apply = compiled(self.apply, self.device.type)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Normalised latents (B, C, H, W) -> pixels (B, c, h, w) about [-1, 1], float32, not clipped."""
        z = latents_BCHW.to(self.device) * self.std + self.mean
        pixels = self.apply(z.to(self.dtype).contiguous()).float()
        return pixels if (self.low, self.high) == (-1, 1) else (pixels - self.low) * (2 / (self.high - self.low)) - 1

    def encode(self, image_Bchw: Tensor) -> Tensor:
        """Pixels (B, c, h, w) in [-1, 1] -> their likeliest normalised latents (B, C, H, W), float32."""
        z = ENCODE[self.kind](self.network, self.own(image_Bchw)).float()
        return (z - self.mean) / self.std

    def draw(self, image_Bchw: Tensor, noise_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> normalised latents drawn from what the encoder gives, as networks are trained on.

        Args:
            noise_BCHW: Standard normal numbers; encoders without a variance have no use for them.
        """
        if self.kind != "AutoencoderKL":
            return self.encode(image_Bchw)
        of_image: Any = self.network.encode(self.own(image_Bchw)).latent_dist  # type: ignore[operator]
        z = of_image.mean.float() + of_image.std.float() * noise_BCHW.to(self.device)
        return (z - self.mean) / self.std

    def own(self, image_Bchw: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> as the autoencoder takes them."""
        pixels = (image_Bchw.to(self.device) + 1) * ((self.high - self.low) / 2) + self.low
        return pixels.to(self.dtype).contiguous()


def statistics(
    kind: str, config: Mapping[str, Any], facts: Mapping[str, Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and std of the autoencoder's latents, (C or 1, 1, 1): it decodes normalised * std + mean."""
    mean: Any = config.get("shift_factor") or 0.0
    std: Any = 1.0
    if "latents_std" in facts or "latents_scale" in facts:
        std = facts.get("latents_std", facts.get("latents_scale"))
    elif kind != "PatchAutoencoder":  # ours normalises by itself
        std = 1 / config.get("scaling_factor", 1.0 if kind == "AutoencoderTiny" else 0.18215)
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = config["latents_mean"], [value * std for value in config["latents_std"]]

    def column(value: Any) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=device).view(-1, 1, 1)

    return column(mean), column(std)
