"""Embeddings of the published class names by the text tower of the CLIP that lies in a feature-aligned checkpoint.

CLIP's text tower (Radford et al. 2021, arXiv:2103.00020): a causal transformer, read at the token that ends the text,
and projected. The checkpoint has its weights but not its vocabulary: the tokens of the published names are kept here.

Shape suffixes: N names, T tokens, D features, h heads, d features a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

START, END = 49406, 49407
# Byte pairs of each published class name, 0 first, in the vocabulary of CLIP.
TOKENS_OF_NAMES = {
    "tumor": (22616,),
    "stroma": (3121, 1226),
    "complex": (6324,),
    "lympho": (20087, 22707),
    "debris": (19208,),
    "mucosa": (670, 622, 1344),
    "adipose": (2486, 4230),
}
HEAD = 64  # features a head, in every published CLIP
EPS = 1e-5


def why_no_tower(clip: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """Why a checkpoint's CLIP cannot embed the names; empty: it can."""
    words, exit_layer = clip.get("text_model.embeddings.token_embedding.weight"), clip.get("text_projection.weight")
    if words is None or exit_layer is None:
        return "the checkpoint holds no text tower of CLIP"
    if unknown := [name for name in names if name.lower() not in TOKENS_OF_NAMES]:  # CLIP knows no capitals
        return f"{unknown[0]} is none of the published names ({', '.join(TOKENS_OF_NAMES)}), and it holds no tokenizer"
    if len(words) <= END or words.shape[1] % HEAD:
        return (
            f"its text tower has {len(words)} words and {words.shape[1]} features, which are not those of a published "
            "CLIP"
        )
    return ""


def class_embeddings(clip: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    """The projected embedding of each name, not normalised: float32 (names, width)."""
    text = {key.removeprefix("text_model."): value.float() for key, value in clip.items()}
    with torch.inference_mode():
        rows = [embedding(text, (START, *TOKENS_OF_NAMES[name.lower()], END)) for name in names]
    return torch.stack(rows).numpy()


def embedding(text: Mapping[str, Tensor], tokens: Sequence[int]) -> Tensor:
    """The projected embedding of one text, (width,)."""
    places = torch.arange(len(tokens))
    x_TD = (
        text["embeddings.token_embedding.weight"][list(tokens)] + text["embeddings.position_embedding.weight"][places]
    )
    depth = len({key.split(".")[2] for key in text if key.startswith("encoder.layers.")})
    for layer in range(depth):
        x_TD = block(text, f"encoder.layers.{layer}", x_TD)
    return norm(text, "final_layer_norm", x_TD)[-1] @ text["text_projection.weight"].mT


def block(text: Mapping[str, Tensor], name: str, x_TD: Tensor) -> Tensor:
    x_TD = x_TD + attention(text, f"{name}.self_attn", norm(text, f"{name}.layer_norm1", x_TD))
    wide = linear(text, f"{name}.mlp.fc1", norm(text, f"{name}.layer_norm2", x_TD))
    return x_TD + linear(text, f"{name}.mlp.fc2", wide * torch.sigmoid(1.702 * wide))  # CLIP's approximation of GELU


def attention(text: Mapping[str, Tensor], name: str, x_TD: Tensor) -> Tensor:
    """Each token looks at itself and those before it."""
    q, k, v = (linear(text, f"{name}.{part}_proj", x_TD).unflatten(-1, (-1, HEAD)).transpose(0, 1) for part in "qkv")
    y_hTd = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return linear(text, f"{name}.out_proj", y_hTd.transpose(0, 1).flatten(1))


def linear(text: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, text[f"{name}.weight"], text[f"{name}.bias"])


def norm(text: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = text[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, text[f"{name}.bias"], EPS)
