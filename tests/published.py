"""The published networks once more, in their parameter names and as plainly as they can be written.

Random weights of these stand in for checkpoints with settings that the golden folders have not; the networks that the
engine runs must compute the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def embed_timesteps(t, width):
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


def attend(q, k, v, heads):
    """Softmax attention of (B, N, heads * d), written out."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Spade(nn.Module):
    def __init__(self, channels, map_channels):
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(map_channels, 128, 3, 1, 1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(128, channels, 3, 1, 1)
        self.mlp_beta = nn.Conv2d(128, channels, 3, 1, 1)

    def forward(self, x, given):
        h = self.mlp_shared(F.interpolate(given, x.shape[-2:], mode="nearest"))
        return F.group_norm(x, 32) * (1 + self.mlp_gamma(h)) + self.mlp_beta(h)


class Res(nn.Module):
    def __init__(self, inputs, outputs, time, scale_shift, resize=None, map_channels=None):
        super().__init__()
        self.scale_shift, self.resize, self.spade = scale_shift, resize, map_channels is not None
        first, last = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        if self.spade:
            self.in_norm, self.out_norm = Spade(inputs, map_channels), Spade(outputs, map_channels)
            self.in_layers = nn.Sequential(nn.SiLU(), first)
            self.out_layers = nn.Sequential(nn.SiLU(), nn.Dropout(0), last)
        else:
            self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), first)
            self.out_layers = nn.Sequential(nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0), last)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs * (2 if scale_shift else 1)))
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def resized(self, x):
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.resize == "up" else x

    def forward(self, x, time, given):
        norm_in = (lambda h: self.in_norm(h, given)) if self.spade else self.in_layers[0]
        norm_out = (lambda h: self.out_norm(h, given)) if self.spade else self.out_layers[0]
        h = self.in_layers[-1](self.resized(F.silu(norm_in(x))))
        e = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, 1)
            h = norm_out(h) * (1 + scale) + shift
        else:
            h = norm_out(h + e)
        return self.skip_connection(self.resized(x)) + self.out_layers[-1](F.silu(h))


class PlainAttention(nn.Module):
    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, time, given):
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x.reshape(b, c, -1)))
        if not self.new_order:  # heads before query, key and value: bring them to the other order
            qkv = qkv.reshape(b, self.heads, 3, c // self.heads, -1).transpose(1, 2).reshape(b, 3 * c, -1)
        q, k, v = (part.mT for part in qkv.chunk(3, 1))
        return x + self.proj_out(attend(q, k, v, self.heads).mT).reshape(b, c, h, w)


class Cross(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(n, width, bias=False) for n in (width, context, context))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, x, context):
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class Forward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(Gated(width), nn.Dropout(0), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.attn1, self.attn2 = Cross(width, width, heads), Cross(width, context, heads)
        self.ff = Forward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context):
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Spatial(nn.Module):
    def __init__(self, channels, heads, context, depth, linear):
        super().__init__()
        self.linear, self.norm = linear, nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in, self.proj_out = (
            nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList([Transformer(channels, context, heads) for _ in range(depth)])

    def forward(self, x, time, given):
        h = self.norm(x)
        h = self.proj_in(h.flatten(2).mT) if self.linear else self.proj_in(h).flatten(2).mT
        for block in self.transformer_blocks:
            h = block(h, given)
        h = h if not self.linear else self.proj_out(h)
        h = h.mT.reshape(x.shape)
        return x + (h if self.linear else self.proj_out(h))


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, x, time, given):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x, time, given):
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class UNet(nn.Module):
    """guided-diffusion's U-Net: with ``map_channels`` the nuclei network, with ``context_dim`` latent diffusion's.

    ``given`` is the semantic map, or the tokens.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        model_channels,
        channel_mult,
        num_res_blocks,
        attention_resolutions,
        num_heads=-1,
        num_head_channels=-1,
        num_heads_upsample=-1,
        use_scale_shift_norm=False,
        resblock_updown=False,
        use_new_attention_order=False,
        map_channels=None,
        context_dim=None,
        transformer_depth=1,
        use_linear_in_transformer=False,
    ):
        super().__init__()
        time, self.width = 4 * model_channels, model_channels

        def attention(ch, heads):
            heads = heads if num_head_channels == -1 else ch // num_head_channels
            if context_dim is not None:
                return Spatial(ch, heads, context_dim, transformer_depth, use_linear_in_transformer)
            return PlainAttention(ch, heads, use_new_attention_order)

        def res(i, o, resize=None, spade=False):
            return Res(i, o, time, use_scale_shift_norm, resize, map_channels if spade else None)

        self.time_embed = nn.Sequential(nn.Linear(model_channels, time), nn.SiLU(), nn.Linear(time, time))
        ch = int(channel_mult[0] * model_channels)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(in_channels, ch, 3, 1, 1)])])
        skips, ds = [ch], 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = [res(ch, int(mult * model_channels))]
                ch = int(mult * model_channels)
                if ds in attention_resolutions:
                    layers.append(attention(ch, num_heads))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(ch)
            if level != len(channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([res(ch, ch, "down") if resblock_updown else Down(ch)]))
                skips.append(ch)
                ds *= 2
        self.middle_block = nn.ModuleList([res(ch, ch, spade=True), attention(ch, num_heads), res(ch, ch, spade=True)])
        self.output_blocks = nn.ModuleList()
        up_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        for level, mult in list(enumerate(channel_mult))[::-1]:
            for i in range(num_res_blocks + 1):
                layers = [res(ch + skips.pop(), int(mult * model_channels), spade=True)]
                ch = int(mult * model_channels)
                if ds in attention_resolutions:
                    layers.append(attention(ch, up_heads))
                if level and i == num_res_blocks:
                    layers.append(res(ch, ch, "up", spade=True) if resblock_updown else Up(ch))
                    ds //= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, ch), nn.SiLU(), nn.Conv2d(ch, out_channels, 3, 1, 1))

    def forward(self, x, t, given):
        time = self.time_embed(embed_timesteps(t, self.width))
        h = self.input_blocks[0][0](x)
        skips = [h]
        for layers in list(self.input_blocks)[1:]:
            for layer in layers:
                h = layer(h, time, given)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, time, given)
        for layers in self.output_blocks:
            h = torch.cat([h, skips.pop()], 1)
            for layer in layers:
                h = layer(h, time, given)
        return self.out(h)


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class VqRes(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class VqAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT for layer in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v, 1).mT.reshape(x.shape))


class VqResize(nn.Module):
    def __init__(self, channels, down):
        super().__init__()
        self.down, self.conv = down, nn.Conv2d(channels, channels, 3, 2 if down else 1, 0 if down else 1)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    def __init__(self, inputs, outputs, count, attended, down=None):
        super().__init__()
        self.block = nn.ModuleList([VqRes(inputs if i == 0 else outputs, outputs) for i in range(count)])
        self.attn = nn.ModuleList([VqAttention(outputs) for _ in range(count if attended else 0)])
        if down is not None:
            setattr(self, "downsample" if down else "upsample", VqResize(outputs, down))

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Mid(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            VqRes(channels, channels),
            VqAttention(channels),
            VqRes(channels, channels),
        )

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class VqEncoder(nn.Module):
    def __init__(
        self, ch, ch_mult, num_res_blocks, attn_resolutions, in_channels, out_ch, z_channels, resolution, double_z=False
    ):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(in_channels, ch, 3, 1, 1)
        self.down = nn.ModuleList(
            Level(
                ch if i == 0 else widths[i - 1],
                width,
                num_res_blocks,
                resolution // 2**i in attn_resolutions,
                True if i < len(widths) - 1 else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid, self.norm_out = Mid(widths[-1]), norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels if double_z else z_channels, 3, 1, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class VqDecoder(nn.Module):
    def __init__(
        self, ch, ch_mult, num_res_blocks, attn_resolutions, in_channels, out_ch, z_channels, resolution, double_z=False
    ):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.conv_in, self.mid = nn.Conv2d(z_channels, widths[-1], 3, 1, 1), Mid(widths[-1])
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, len(widths) - 1)],
                width,
                num_res_blocks + 1,
                resolution // 2**i in attn_resolutions,
                False if i > 0 else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], out_ch, 3, 1, 1)

    def forward(self, z):
        z = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            z = level(z)
        return self.conv_out(F.silu(self.norm_out(z)))


class Vq(nn.Module):
    def __init__(self, embed_dim, n_embed, ddconfig):
        super().__init__()
        z = ddconfig["z_channels"]
        self.encoder, self.decoder = VqEncoder(**ddconfig), VqDecoder(**ddconfig)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, embed_dim, 1), nn.Conv2d(embed_dim, z, 1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(n_embed, embed_dim)

    def encode(self, x):
        return self.quant_conv(self.encoder(x))

    def decode(self, z):
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        nearest = torch.cdist(flat, self.quantize.embedding.weight).argmin(1)
        chosen = self.quantize.embedding(nearest).reshape(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(chosen))


class Kl(nn.Module):
    """ldm.models.autoencoder.AutoencoderKL: the encoder gives mean and log-variance, of which the mean is taken."""

    def __init__(self, embed_dim, ddconfig):
        super().__init__()
        z = ddconfig["z_channels"]
        self.encoder, self.decoder = VqEncoder(**ddconfig), VqDecoder(**ddconfig)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * z, 2 * embed_dim, 1), nn.Conv2d(embed_dim, z, 1)

    def encode(self, x):
        return self.quant_conv(self.encoder(x)).chunk(2, 1)[0]

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))
