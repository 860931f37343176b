"""The nuclei network: a guided-diffusion U-Net (Dhariwal & Nichol 2021, arXiv:2105.05233) that a semantic map enters
through spatially adaptive normalisation (Wang et al. 2022, arXiv:2207.00050), in its published parameter names.

Shape suffixes: B batch, C channels, H W pixels, K channels of the map, T = H W, h heads, d channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
MAP_FEATURES = 128
Resize = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def timestep_embedding(t_B: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of geometrically spaced frequencies (B, width), in float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t_B.device, dtype=torch.float32) / half)
    angles = t_B[:, None].float() * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, width % 2))


class SpadeNorm(nn.Module):
    """Group normalisation, then a gain and an offset for every position, from the map."""

    def __init__(self, channels: int, map_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(map_channels, MAP_FEATURES, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(MAP_FEATURES, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(MAP_FEATURES, channels, 3, padding=1)

    def forward(self, x: Tensor, map_BKHW: Tensor) -> Tensor:
        features = self.mlp_shared(F.interpolate(map_BKHW, size=x.shape[-2:], mode="nearest"))
        return self.norm(x) * (1 + self.mlp_gamma(features)) + self.mlp_beta(features)


class ResBlock(nn.Module):
    """Two convolutions, each after normalisation; time enters between them. The size may be halved or doubled.

    Args:
        inputs: Number of features that are read.
        outputs: Number of features that are made.
        embedding: Length of the embedding of time.
        scale_shift: Whether time scales and shifts the normalised features; else it is added before.
        dropout: Share of features that training sets to 0.
        resize: Function that changes the size between normalisation and convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        scale_shift: bool,
        dropout: float = 0.0,
        resize: Resize = same,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), conv(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outputs), nn.SiLU(), nn.Dropout(dropout), conv(outputs, outputs)
        )
        self.skip_connection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def norm_in(self, x: Tensor, map_BKHW: Tensor) -> Tensor:
        return self.in_layers[0](x)

    def norm_out(self, x: Tensor, map_BKHW: Tensor) -> Tensor:
        return self.out_layers[0](x)

    def forward(self, x: Tensor, time: Tensor, map_BKHW: Tensor) -> Tensor:
        h = self.in_layers[-1](self.resize(F.silu(self.norm_in(x, map_BKHW))))
        embedding = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = embedding.chunk(2, 1)
            h = self.norm_out(h, map_BKHW) * (1 + scale) + shift
        else:
            h = self.norm_out(h + embedding, map_BKHW)
        h = self.out_layers[-2:](F.silu(h))
        return self.skip_connection(self.resize(x)) + h


class SpadeBlock(ResBlock):
    """A ``ResBlock`` whose two normalisations read the map."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        scale_shift: bool,
        dropout: float = 0.0,
        resize: Resize = same,
        *,
        map_channels: int,
    ) -> None:
        super().__init__(inputs, outputs, embedding, scale_shift, dropout, resize)
        self.in_norm = SpadeNorm(inputs, map_channels)
        self.out_norm = SpadeNorm(outputs, map_channels)
        self.in_layers = nn.Sequential(*list(self.in_layers)[1:])
        self.out_layers = nn.Sequential(*list(self.out_layers)[1:])

    def norm_in(self, x: Tensor, map_BKHW: Tensor) -> Tensor:
        return self.in_norm(x, map_BKHW)

    def norm_out(self, x: Tensor, map_BKHW: Tensor) -> Tensor:
        return self.out_norm(x, map_BKHW)


class Attention(nn.Module):
    """Softmax attention between all positions.

    Args:
        channels: Number of features.
        heads: Number of heads.
        heads_first: Whether the features of ``qkv`` are in the order (head, query key value, d) rather than
            (query key value, head, d).
    """

    def __init__(self, channels: int, heads: int, heads_first: bool) -> None:
        super().__init__()
        self.heads, self.heads_first = heads, heads_first
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor, map_BKHW: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x.flatten(2)))
        if self.heads_first:
            qkv = qkv.unflatten(1, (self.heads, 3, -1)).transpose(1, 2)
        else:
            qkv = qkv.unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.mT.unbind(1)  # (B, h, T, d)
        out = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)
        return x + self.proj_out(out).unflatten(-1, x.shape[-2:])


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, map_BKHW: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, map_BKHW: Tensor) -> Tensor:
        return self.conv(double(x))


class Stage(nn.ModuleList):
    """Layers that are applied one after the other."""

    def forward(self, x: Tensor, time: Tensor, map_BKHW: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time, map_BKHW)
        return x


class SpadeUNet(nn.Module):
    """A U-Net whose middle and decoder read a semantic map.

    Args:
        map_channels: Number K of channels of the map.
        channels: Number C of channels of the pixels.
        out_channels: Number of channels of the output: C, or 2 C where the variance is learned.
        model_channels: Number that ``channel_mult`` multiplies.
        channel_mult: Factors of the features, one for each level from full size down.
        num_res_blocks: Number of residual blocks of each level.
        attention_factors: Factors by which the size is divided on the levels that have attention.
        num_heads: Number of heads.
        num_head_channels: Number d of channels of a head, which decides how many heads there are; -1: it does not.
        num_heads_upsample: Number of heads of the decoder; -1: ``num_heads``.
        use_scale_shift_norm: Whether time scales and shifts; see ``ResBlock``.
        resblock_updown: Whether residual blocks change the size; else convolutions do.
        use_new_attention_order: Whether query, key and value come before the heads; see ``Attention``.
        dropout: Share of features that training sets to 0.
    """

    def __init__(
        self,
        map_channels: int,
        channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        channel_mult: Sequence[float] = (1, 1, 2, 3, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (),
        num_heads: int = 4,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "map_channels": map_channels,
            "channels": channels,
            "out_channels": out_channels,
            "model_channels": model_channels,
            "channel_mult": list(channel_mult),
            "num_res_blocks": num_res_blocks,
            "attention_factors": list(attention_factors),
            "num_heads": num_heads,
            "num_head_channels": num_head_channels,
            "num_heads_upsample": num_heads_upsample,
            "use_scale_shift_norm": use_scale_shift_norm,
            "resblock_updown": resblock_updown,
            "use_new_attention_order": use_new_attention_order,
            "dropout": dropout,
        }
        width = int(channel_mult[0] * model_channels)
        time = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(channels, width, 3, padding=1)])])
        self.output_blocks = nn.ModuleList()
        self.add_middle(self.add_decoder(self.add_encoder(width)))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def add_encoder(self, width: int) -> list[int]:
        """Append the input blocks; return the number of features of each, the first convolution included."""
        c, features = self.config, [width]
        for level, mult in enumerate(c["channel_mult"]):
            outer = int(mult * c["model_channels"])
            for _ in range(c["num_res_blocks"]):
                block = self.block(ResBlock, features[-1], outer)
                self.input_blocks.append(Stage([block, *self.attention(level, outer, "num_heads")]))
                features.append(outer)
            if level < len(c["channel_mult"]) - 1:
                down = self.block(ResBlock, outer, outer, halve) if c["resblock_updown"] else Downsample(outer)
                self.input_blocks.append(Stage([down]))
                features.append(outer)
        return features

    def add_decoder(self, features: list[int]) -> int:
        """Append the output blocks, which take the encoder's features last first; return the middle's features."""
        c, middle = self.config, features[-1]
        heads, width = "num_heads" if c["num_heads_upsample"] == -1 else "num_heads_upsample", middle
        for level, mult in reversed(list(enumerate(c["channel_mult"]))):
            outer = int(mult * c["model_channels"])
            for index in range(c["num_res_blocks"] + 1):
                block = self.block(SpadeBlock, width + features.pop(), outer)
                layers, width = [block, *self.attention(level, outer, heads)], outer
                if level > 0 and index == c["num_res_blocks"]:
                    up = self.block(SpadeBlock, outer, outer, double) if c["resblock_updown"] else Upsample(outer)
                    layers.append(up)
                self.output_blocks.append(Stage(layers))
        return middle

    def add_middle(self, width: int) -> None:
        attention = Attention(width, self.heads(width, "num_heads"), not self.config["use_new_attention_order"])
        first, last = (self.block(SpadeBlock, width, width) for _ in range(2))
        self.middle_block = Stage([first, attention, last])

    def block(self, kind: type[ResBlock], inputs: int, outputs: int, resize: Resize = same) -> ResBlock:
        c = self.config
        extra = {"map_channels": c["map_channels"]} if kind is SpadeBlock else {}
        return kind(inputs, outputs, 4 * c["model_channels"], c["use_scale_shift_norm"], c["dropout"], resize, **extra)

    def attention(self, level: int, width: int, heads: str) -> list[nn.Module]:
        """The attention of a level: one layer, or none."""
        if 2**level not in self.config["attention_factors"]:
            return []
        return [Attention(width, self.heads(width, heads), not self.config["use_new_attention_order"])]

    def heads(self, width: int, setting: str) -> int:
        channels = self.config["num_head_channels"]
        return self.config[setting] if channels == -1 else width // channels

    @property
    def divisor(self) -> int:
        """The number that the sides of a window must be multiples of."""
        return int(2 ** (len(self.config["channel_mult"]) - 1))

    def forward(self, x_BCHW: Tensor, t_B: Tensor, map_BKHW: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x_BCHW: Noisy windows.
            t_B: Timesteps of the model.
            map_BKHW: Semantic map, at the size of ``x_BCHW``; zeros are the null.
        Returns:
            (B, out_channels, H, W); channels C to 2 C, where there are any, are the variance prediction.
        """
        frequencies = timestep_embedding(t_B, self.config["model_channels"])
        time = self.time_embed(frequencies.to(x_BCHW.dtype))
        x = self.input_blocks[0][0](x_BCHW)  # type: ignore[index]
        skips = [x]
        for stage in list(self.input_blocks)[1:]:
            x = stage(x, time, map_BKHW)
            skips.append(x)
        x = self.middle_block(x, time, map_BKHW)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], 1), time, map_BKHW)
        return self.out(x)
