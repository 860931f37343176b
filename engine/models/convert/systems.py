"""The function of each published system that turns its checkpoint into the parts of a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.models.convert import diffinfinite, feature_aligned, large_image
from engine.models.convert import sdm as nuclei
from engine.models.convert.common import Converted, Options, Part

__all__ = ["CONVERT", "Converted", "Options", "Part"]
CONVERT: dict[str, Callable[[Mapping[str, Any], Path, Options], Converted]] = {
    "diffinfinite-image": diffinfinite.convert_image,
    "diffinfinite-labels": diffinfinite.convert_labels,
    "large-image-diffusion": large_image.convert,
    "sdm": nuclei.convert,
    "feature-aligned": feature_aligned.convert,
}
