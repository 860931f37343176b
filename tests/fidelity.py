"""torch-fidelity's parts. It imports torchvision for datasets and pictures, of which there is no build for CPUs."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.util import find_spec
from typing import Any

import pytest

ABSENT = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.models",
)


class Absent(types.ModuleType):
    """A module any name of which is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def fidelity(part: str) -> Any:
    """A module of torch-fidelity; the test is skipped where it is not installed."""
    if find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    added = [name for name in ABSENT if name not in sys.modules]
    for name in added:
        module = sys.modules[name] = Absent(name)
        parent, _, own = name.rpartition(".")
        if parent in added:
            setattr(sys.modules[parent], own, module)
    try:
        return importlib.import_module(f"torch_fidelity.{part}")
    finally:
        for name in added:
            del sys.modules[name]
