"""Networks prepared for inference: they compute the same function of the same weights, in fewer and larger steps.

A rewrite takes a layer and returns the layer that replaces it, or None. Only rewrites that save time are here. Three
were tried and gained less than the noise: scale and shift in one pass with the activation in place, layer normalisation
by torch's own, and the gain and offset of a map from one convolution. Weights are summed and multiplied in float32,
before a network goes to its device and type. Training keeps the network as it was built: a prepared one has other
parameters and cannot be saved.

Shape suffixes: B batch, C channels, H W latents, N = H W, h heads, d channels a head.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.networks import autoencoder
from engine.models.networks import spade_unet as sdm
from engine.models.networks.mask_unet import ChannelNorm, MaskAttention, PreNorm, Residual, StandardizedConv2d
from engine.models.without_weights import without_weights

Rewrite = Callable[[nn.Module], nn.Module | None]


def prepare_for_inference(
    network: nn.Module, device: str = "cpu", rewrites: Iterable[Rewrite] | None = None
) -> nn.Module:
    """Rewrite the layers of a network, in place, and return it.

    Args:
        network: Network in float32, without gradients. It may be one of our own or an autoencoder of diffusers, but no
            U-Net of diffusers: these may ask a layer for another size than twice its own.
        device: Device that it will run on.
        rewrites: Values of ``REWRITES`` to apply; None: all that save time on the device.

    >>> conv = nn.Sequential(StandardizedConv2d(2, 3, 3)).requires_grad_(False)
    >>> prepare_for_inference(conv)
    Sequential(
      (0): Conv2d(2, 3, kernel_size=(3, 3), stride=(1, 1))
    )
    """
    chosen = tuple(winning(device) if rewrites is None else rewrites)
    for name, child in list(network.named_children()):
        for rewrite in chosen:
            child = rewrite(child) or child
        setattr(network, name, prepare_for_inference(child, device, chosen))
    return network


def winning(device: str) -> list[Rewrite]:
    """The rewrites that save time on a device; ``doubling`` was measured on a CPU only."""
    return [rewrite for rewrite in REWRITES.values() if rewrite is not doubling or device == "cpu"]


def compiled(function: Callable[..., Tensor], device: str = "cpu") -> Callable[..., Tensor]:
    """Compile a function from tensors to one tensor at its first call; on a GPU it becomes one CUDA graph.

    Inductor compiles for the shapes of that call and times no alternatives, so that every rank gets the same code.
    Ranks that compile at once share inductor's folder (``TORCHINDUCTOR_CACHE_DIR``), which is locked file by file. The
    result of a CUDA graph lies in memory that its next call overwrites, so a copy is returned.
    """
    graphs = device != "cpu"
    options: dict[str, Any] = {"deterministic": True, "triton.cudagraphs": graphs}
    fast = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    if not graphs:
        return fast

    def call(*given: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return fast(*given).clone()

    return call


def check_compiles(device: str, ranks: int = 1) -> None:
    """Refuse the job's ``compile`` where torch cannot compile, by compiling a small function.

    Args:
        device: Device that is compiled for.
        ranks: Number of ranks on this node, which share its cores while they compile.
    Raises:
        ValueError: there is no compiler or no Triton, or torch lacks a setting that is needed.
    """
    import torch._inductor.config as inductor

    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor.compile_threads = max(len(os.sched_getaffinity(0)) // ranks, 1)
    way = "leave `compile` out"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device == "cpu" and shutil.which(compiler) is None:  # the cache of an earlier run would hide that
        raise ValueError(
            f"`compile` needs a C++ compiler and {compiler or 'no CXX'} is not there; install it, set CXX, or {way}"
        )
    try:
        with torch.inference_mode():
            compiled(torch.sin, device)(torch.zeros(1, device=device))
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"`compile`: torch {torch.__version__} cannot compile on {device} here: {said}; {way}"
        ) from None


def folded(layer: nn.Module) -> nn.Module | None:
    """A convolution that standardises its weights -> one whose weights are standardised already."""
    if not isinstance(layer, StandardizedConv2d):
        return None
    sizes: Any = (layer.kernel_size, layer.stride, layer.padding)
    with without_weights():
        conv = nn.Conv2d(layer.in_channels, layer.out_channels, *sizes)
    conv.weight, conv.bias = frozen(layer.standardized()), layer.bias
    return conv


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


class MaskAnswers(nn.Module):
    """``Residual(PreNorm(MaskAttention))`` without keys and values.

    The query is constant, so each head's scores are a fixed linear form of the features, and the weighted mean of the
    features goes through the product of ``to_out`` and ``to_v``. Both contain the gain of the normalisation.
    """

    def __init__(self, attention: MaskAttention, norm: ChannelNorm) -> None:
        super().__init__()
        heads, gain = attention.heads, norm.g.flatten()
        to_k, to_v = attention.to_kv.weight[:, :, 0, 0].unflatten(0, (2, heads, -1))  # (h, d, C)
        query = attention.to_q.weight.sum((1, 2, 3)).view(heads, 1, -1) * attention.scale
        to_out = attention.to_out.weight[:, :, 0, 0].unflatten(1, (heads, -1)).transpose(0, 1)  # (h, C, d)
        answers = to_out @ to_v * gain  # (h, C, C)
        self.score = frozen((query @ to_k)[:, 0] * gain)
        self.labelled = frozen(answers.transpose(1, 2).flatten(0, 1))  # (h C, C)
        self.other = frozen(answers.sum(0).mT)
        self.bias = attention.to_out.bias

    def forward(self, x: Tensor, mask_B1HW: Tensor) -> Tensor:
        x_BNC = normalised(x).flatten(1, 2)
        weights = torch.matmul(self.score, x_BNC.mT).softmax(-1)  # (B, h, N)
        other = F.linear(x_BNC.mean(1), self.other.mT, self.bias)
        labelled = F.linear((weights @ x_BNC).flatten(1), self.labelled.mT, self.bias)
        return torch.addcmul(x + column(other), column(labelled - other), mask_B1HW)


def normalised(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), normalised over channels; nothing is transposed where channels lie last."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-5)


def column(values_BC: Tensor) -> Tensor:
    return values_BC[:, :, None, None]


def mask_answers(layer: nn.Module) -> nn.Module | None:
    """Attention with the mask as its query, with its normalisation and skip -> ``MaskAnswers``."""
    norm = layer.fn if isinstance(layer, Residual) else None
    if not isinstance(norm, PreNorm) or not isinstance(norm.fn, MaskAttention):
        return None
    return MaskAnswers(norm.fn, norm.norm)


class DoublingConv(nn.Module):
    """Nearest neighbours at twice the size and a 3 x 3 convolution, as one transposed convolution of 4 x 4.

    An output takes 9 products, but some of these read the same latent: their weights are summed, and 4 are left.
    Doubling a repeated edge repeats the doubled edge, so ``replicate`` pads before; ``reflect`` is not replaced.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = F.pad(conv.weight, (0, 1, 0, 1)) + F.pad(conv.weight, (1, 0, 0, 1))
        kernel = F.pad(kernel, (0, 0, 0, 1))[:, :, :4] + F.pad(kernel, (0, 0, 1, 0))[:, :, :4]
        self.edges = (1, 1, 1, 1) if conv.padding_mode == "replicate" else None
        padding = 3 if self.edges else 1
        with without_weights():
            self.conv = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, 2, padding)
        self.conv.weight, self.conv.bias = frozen(kernel.flip(2, 3).transpose(0, 1)), conv.bias

    def forward(self, x: Tensor, *others: object) -> Tensor:
        return self.conv(F.pad(x, self.edges, "replicate") if self.edges else x)


def doubling(layer: nn.Module) -> nn.Module | None:
    """Nearest neighbours at twice the size and a 3 x 3 convolution -> ``DoublingConv``."""
    conv: nn.Module | None = None
    if isinstance(layer, autoencoder.Upsample | sdm.Upsample):
        conv = layer.conv
    elif isinstance(layer, nn.Sequential) and len(layer) == 2 and isinstance(layer[0], nn.Upsample):
        conv = layer[1]
    elif type(layer).__name__ == "Upsample2D" and doubles(layer):
        conv = layer.conv  # type: ignore[assignment]
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (3, 3) or conv.padding_mode not in ("zeros", "replicate"):
        return None
    return DoublingConv(conv)


def doubles(layer: nn.Module) -> bool:
    """Whether diffusers' layer consists of nearest neighbours and a convolution alone."""
    return bool(layer.interpolate and layer.norm is None and layer.name == "conv")


REWRITES: dict[str, Rewrite] = {
    "weights folded": folded,
    "attention of masks": mask_answers,
    "doubling": doubling,
}
