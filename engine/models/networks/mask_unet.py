"""DiffInfinite's networks (Aversa et al. 2023, arXiv:2306.13384), under their published parameter names.

``MaskUNet`` makes images from label maps, and ``LabelUNet`` makes label maps from a class.

Shape suffixes: B batch, C channels, H W latents, N = H W, h heads, d channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights are standardised per output channel (Qiao et al. 2019, arXiv:1903.10520)."""

    def standardized(self) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return (self.weight - mean) * (variance + 1e-5).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardized(), self.bias, self.stride, self.padding)


class ChannelNorm(nn.Module):
    """Layer normalisation over channels, with a gain and no offset."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)  # var_mean takes five times as long on a CPU
        return centred * (variance + 1e-5).rsqrt() * self.g


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.proj = StandardizedConv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return F.silu(x)


class ResnetBlock(nn.Module):
    """Two blocks; the embedding of time and class scales and shifts the first."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.block1 = Block(inputs, outputs, groups)
        self.block2 = Block(outputs, outputs, groups)
        self.res_conv = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, (scale, shift))) + self.res_conv(x)


class MaskAttention(nn.Module):
    """Attention whose query is the 0/1 map of one label and whose keys and values are the features.

    The query is the same vector at every labelled position and zero at every other. So there are only two results:
    softmax attention at labelled positions, and the mean of the values elsewhere. Both cost O(N), and no N x N matrix
    is made.
    """

    def __init__(self, channels: int, heads: int = 4, head_channels: int = 32) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_channels**-0.5
        hidden = heads * head_channels
        self.to_kv = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.to_q = nn.Conv2d(channels, hidden, 1, bias=False)
        self.to_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor, mask_B1HW: Tensor) -> Tensor:
        k, v = self.to_kv(x).flatten(2).unflatten(1, (2, self.heads, -1)).unbind(1)  # (B, h, d, N)
        q = self.to_q.weight.sum((1, 2, 3)).view(self.heads, -1) * self.scale
        weights = torch.einsum("hd,bhdn->bhn", q, k).softmax(-1)
        labelled = torch.einsum("bhn,bhdn->bhd", weights, v).flatten(1)
        other = v.mean(-1).flatten(1)
        out = F.linear(torch.stack([other, labelled]), self.to_out.weight[:, :, 0, 0], self.to_out.bias)
        return out[0][..., None, None] + (out[1] - out[0])[..., None, None] * mask_B1HW


class LinearAttention(nn.Module):
    """Attention whose softmaxes are taken before the products (Shen et al. 2021, arXiv:1812.01243).

    Between its softmaxes everything is linear, so the small matrices are multiplied first: two matrices a window
    replace the values and the heads' results, which have N columns.
    """

    def __init__(self, channels: int, heads: int = 4, head_channels: int = 32) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_channels**-0.5
        hidden = heads * head_channels
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(hidden, channels, 1), ChannelNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        to_q, to_k, to_v = self.to_qkv.weight[:, :, 0, 0].chunk(3)
        conv, norm = self.to_out
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        x_BCN = x.flatten(2)
        k = torch.bmm(to_k.expand(len(x), -1, -1), x_BCN).softmax(-1)  # (B, hd, N)
        q = torch.bmm(to_q.expand(len(x), -1, -1), x_BCN).unflatten(1, (self.heads, -1)).softmax(-2).flatten(1, 2)
        seen = (k @ x_BCN.mT).unflatten(1, (self.heads, -1))  # (B, h, d, C)
        values = to_v.unflatten(0, (self.heads, -1))
        answer = conv.weight[:, :, 0, 0].unflatten(1, (self.heads, -1)).transpose(0, 1)  # (h, C, d)
        mix = (answer @ values) @ seen.mT * (self.scale / x_BCN.shape[-1])  # (B, h, C, d)
        out = mix.transpose(1, 2).flatten(2) @ q  # (B, C, N)
        return norm(out.unflatten(-1, x.shape[-2:]) + conv.bias[:, None, None])


class Attention(nn.Module):
    """Softmax attention between all positions."""

    def __init__(self, channels: int, heads: int = 4, head_channels: int = 32) -> None:
        super().__init__()
        self.heads = heads
        hidden = heads * head_channels
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.to_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.mT for part in heads_of(self.to_qkv(x), self.heads))
        out = F.scaled_dot_product_attention(q, k, v).mT
        return self.to_out(out.flatten(1, 2).unflatten(-1, x.shape[-2:]))


def heads_of(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3 h d, H, W) -> query, key and value (B, h, d, N)."""
    q, k, v = qkv.flatten(2).unflatten(1, (3, heads, -1)).unbind(1)
    return q, k, v


class PreNorm(nn.Module):
    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        return self.fn(self.norm(x), *args)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        return x + self.fn(x, *args)


class SinusoidalEmbedding(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.count = channels // 2

    def forward(self, t: Tensor) -> Tensor:
        """In float32 whatever the network's type: half precision does not tell neighbouring timesteps apart."""
        steps = torch.arange(self.count, device=t.device)
        angles = t[:, None].float() * torch.exp(steps * -(math.log(10000) / (self.count - 1)))
        return torch.cat([angles.sin(), angles.cos()], -1)


class UNet(nn.Module):
    """The part that both networks share: all but the attention and the condition.

    Args:
        dim: Number of features at full size; the levels below have ``dim * dim_mults``.
        num_classes: Number of rows of the table of classes.
        dim_mults: Factors of ``dim``, one for each level.
        channels: Number of channels of the input and the output.
        resnet_block_groups: Number of groups of the group normalisation.
        block_per_layer: Number of residual blocks of each level.
        attention: Function that makes the attention layer of a level from its number of features.
        middle: The same function for the middle.
        attention_from: First level that has attention, counted from full size; 0 in the published networks.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        dim_mults: Sequence[int],
        channels: int,
        resnet_block_groups: int,
        block_per_layer: int,
        attention: Callable[[int], nn.Module],
        middle: Callable[[int], nn.Module],
        attention_from: int = 0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "dim": dim,
            "num_classes": num_classes,
            "dim_mults": list(dim_mults),
            "channels": channels,
            "resnet_block_groups": resnet_block_groups,
            "block_per_layer": block_per_layer,
        }
        groups, n = resnet_block_groups, block_per_layer
        embedding = 8 * dim
        dims = [dim, *(dim * m for m in dim_mults)]
        pairs = list(pairwise(dims))

        self.init_conv = nn.Conv2d(channels, dim, 7, padding=3)
        self.time_mlp = nn.Sequential(
            SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim)
        )
        self.classes_emb = nn.Embedding(num_classes, dim)
        self.classes_mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (inner, outer) in enumerate(pairs):
            last = level == len(pairs) - 1
            down = nn.Conv2d(inner, outer, 3, padding=1) if last else nn.Conv2d(inner, outer, 4, 2, 1)
            blocks = [ResnetBlock(inner, inner, embedding, groups) for _ in range(n)]
            attend = residual(inner, attention) if level >= attention_from else nn.Identity()
            self.downs.append(nn.ModuleList([*blocks, attend, down]))
        width = dims[-1]
        self.mid_block1 = ResnetBlock(width, width, embedding, groups)
        self.mid_attn = residual(width, middle)
        self.mid_block2 = ResnetBlock(width, width, embedding, groups)
        for level, (inner, outer) in enumerate(reversed(pairs)):
            last = level == len(pairs) - 1
            conv = nn.Conv2d(outer, inner, 3, padding=1)
            up = conv if last else nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)
            blocks = [ResnetBlock(outer + inner, outer, embedding, groups) for _ in range(n)]
            attend = residual(outer, attention) if len(pairs) - 1 - level >= attention_from else nn.Identity()
            self.ups.append(nn.ModuleList([*blocks, attend, up]))
        self.final_res_block = ResnetBlock(2 * dim, dim, embedding, groups)
        self.final_conv = nn.Conv2d(dim, channels, 1)

    @property
    def divisor(self) -> int:
        """The number that the sides of a window must be multiples of."""
        return int(2 ** (len(self.config["dim_mults"]) - 1))

    def evaluate(
        self, x_BCHW: Tensor, t_B: Tensor, class_BC: Tensor, attend: Callable[[nn.Module, Tensor], Tensor]
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x_BCHW: Noisy windows.
            t_B: Timesteps of the model.
            class_BC: Embedding of each window's class.
            attend: Function that applies an attention layer to features.
        """
        time = self.time_mlp[1:](self.time_mlp[0](t_B).to(x_BCHW.dtype))
        embedding = torch.cat([time, self.classes_mlp(class_BC)], -1)
        x = self.init_conv(x_BCHW)
        first, skips = x, []
        n = self.config["block_per_layer"]
        for down in self.downs:
            for block in down[:n]:  # type: ignore[index]
                x = block(x, embedding)
                skips.append(x)
            skips[-1] = x = attend(down[n], x)  # type: ignore[index]
            x = down[n + 1](x)  # type: ignore[index]
        x = self.mid_block2(attend(self.mid_attn, self.mid_block1(x, embedding)), embedding)
        for up in self.ups:
            for block in up[:n]:  # type: ignore[index]
                x = block(torch.cat([x, skips.pop()], 1), embedding)
            x = up[n + 1](attend(up[n], x))  # type: ignore[index]
        return self.final_conv(self.final_res_block(torch.cat([x, first], 1), embedding))


def residual(channels: int, attention: Callable[[int], nn.Module]) -> nn.Module:
    return Residual(PreNorm(channels, attention(channels)))


class MaskUNet(UNet):
    """The U-Net of DiffInfinite's image model, for windows with one label each besides unknown.

    Args:
        dim: Number of features at full size; the levels below have ``dim * dim_mults``.
        num_classes: Number of labels, with 0: unknown, the null of guidance.
        dim_mults: Factors of ``dim``, one for each level.
        channels: Number of channels of the latents.
        resnet_block_groups: Number of groups of the group normalisation.
        block_per_layer: Number of residual blocks of each level.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        dim_mults: Sequence[int] = (1, 2, 4),
        channels: int = 4,
        resnet_block_groups: int = 8,
        block_per_layer: int = 2,
    ) -> None:
        sizes = (dim, num_classes, dim_mults, channels, resnet_block_groups, block_per_layer)
        super().__init__(*sizes, MaskAttention, MaskAttention)

    def forward(self, x_BCHW: Tensor, t_B: Tensor, label_B: Tensor, mask_B1HW: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x_BCHW: Noisy windows.
            t_B: Timesteps of the model.
            label_B: Label of each window; 0 for the null.
            mask_B1HW: Mask, 1 where the window has that label, else 0; zero throughout for the null.
        Returns:
            The network's output (B, C, H, W), in the model's prediction type.
        """
        masks = {x_BCHW.shape[-1]: mask_B1HW.to(x_BCHW.dtype)}

        def attend(layer: nn.Module, x: Tensor) -> Tensor:
            side = x.shape[-1]
            if side not in masks:
                masks[side] = F.adaptive_max_pool2d(masks[x_BCHW.shape[-1]], x.shape[-2:])
            return layer(x, masks[side])

        return self.evaluate(x_BCHW, t_B, self.classes_emb(label_B), attend)


class LabelUNet(UNet):
    """The U-Net of DiffInfinite's label model: label maps as images, one class for a window.

    Args:
        dim: Number of features at full size; the levels below have ``dim * dim_mults``.
        num_classes: Number of classes, without the null of guidance.
        dim_mults: Factors of ``dim``, one for each level.
        channels: Number of channels of the latents, or of labels where each label is a channel.
        resnet_block_groups: Number of groups of the group normalisation.
        block_per_layer: Number of residual blocks of each level.
        attention_from: First level that has attention, counted from full size. It is 0 in the published network;
            attention at full size takes half of the time.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        dim_mults: Sequence[int] = (1, 2, 4),
        channels: int = 4,
        resnet_block_groups: int = 8,
        block_per_layer: int = 2,
        attention_from: int = 0,
    ) -> None:
        sizes = (dim, num_classes, dim_mults, channels, resnet_block_groups, block_per_layer)
        super().__init__(*sizes, LinearAttention, Attention, attention_from)
        self.config["attention_from"] = attention_from
        self.null_classes_emb = nn.Parameter(torch.randn(dim))

    def forward(self, x_BCHW: Tensor, t_B: Tensor, label_B: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x_BCHW: Noisy windows.
            t_B: Timesteps of the model.
            label_B: Class of each window, 0 ... num_classes - 1; -1 for the null.
        Returns:
            The network's output (B, C, H, W), in the model's prediction type.
        """
        known = self.classes_emb(label_B.clamp(min=0))
        asked = torch.where((label_B < 0)[:, None], self.null_classes_emb, known)
        return self.evaluate(x_BCHW, t_B, asked, lambda layer, x: layer(x))
