"""Embeddings of class names by CLIP's text tower (Radford et al. 2021, arXiv:2103.00020), from a folder of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def text_embeddings(folder: Path, names: Sequence[str]) -> np.ndarray:
    """The projected embedding of each name, not normalised: float32 (names, width).

    Raises:
        ValueError: there are no names, the folder is no CLIP, or transformers is not installed.
    """
    if not names:
        raise ValueError(f"`clip` {folder} embeds the names of classes; pass them with `names` A,B,...")
    if not (folder / "config.json").is_file():
        raise ValueError(f"`clip` {folder} holds no config.json; pass a folder of CLIP with its tokenizer")
    try:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection
        from transformers.utils import logging
    except ImportError:
        raise ValueError(
            "`clip` needs transformers, which is not installed: pip install 'slidefield[models]', "
            "or compute the table elsewhere and pass it with `class_embeddings`"
        ) from None
    import torch

    logging.set_verbosity_error()  # else it warns of the vision tower, which is left out
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tower = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    with torch.inference_mode():
        return tower(**tokenizer(list(names), padding=True, return_tensors="pt")).text_embeds.float().numpy()
