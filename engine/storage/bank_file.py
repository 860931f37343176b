"""A bank of features, HDF5: what crops of a reference look like, for whoever asks whether another is like them::

    /features       float32 (K, D): the coreset
    /held_out       float64 (n,): scores of crops that the bank was not made of

Its attribute "slidefield_bank" is a JSON object: the extractor's name and hash, the crops' side, the quantile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.storage.embedding_file import Disk
from engine.storage.files import whole_file
from engine.storage.readers import HDF5, reason
from engine.storage.target_file import check_target, is_read_by

FACTS = "slidefield_bank"


@dataclass(frozen=True)
class BankFile:
    """What a file of a bank holds.

    Args:
        features: float32 (K, D).
        held_out: float64 (n,).
        facts: JSON values.
    """

    features: np.ndarray
    held_out: np.ndarray
    facts: Mapping[str, Any]


def write_bank(path: Path, bank: BankFile) -> None:
    """Write a bank whole or not at all."""
    import h5py

    with whole_file(path) as temporary, temporary.open("w+b", buffering=0) as opened:
        disk = Disk(opened, path)
        with h5py.File(disk, "w") as file:
            file["features"], file["held_out"] = bank.features, bank.held_out
            file.attrs[FACTS] = json.dumps(dict(bank.facts))
        disk.check()


def read_bank(path: Path, option: str) -> BankFile:
    """What ``write_bank`` wrote.

    Args:
        option: What gave the path, for messages.
    Raises:
        ValueError: it is no bank, or damaged.
    """
    import h5py

    if not path.is_file():
        raise ValueError(f"{option} {path} is not there; make it with engine.evaluate REAL --bank {path.name}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            facts = json.loads(file.attrs[FACTS])
            bank = BankFile(file["features"][()], file["held_out"][()], facts)
        assert bank.features.ndim == 2, "features"
        assert bank.features.size, "features"
        assert bank.features.dtype == np.float32, "features"
        assert np.isfinite(bank.features).all(), "features are not finite"
        assert bank.held_out.ndim == 1, "held_out"
        assert bank.held_out.size, "held_out"
        assert np.isfinite(bank.held_out).all(), "held_out is not finite"
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        why = reason(error)
        raise ValueError(f"{option} {path} is no bank ({why}); make one with engine.evaluate REAL --bank") from None
    return bank


def check_bank_place(path: Path, overwrite: bool) -> None:
    """Refuse a path that a bank cannot be written to.

    Raises:
        ValueError: there is something already, or no folder, or it is no name of HDF5.
    """
    if path.suffix not in HDF5:
        raise ValueError(f"`bank` {path} is a file of HDF5; end it in {' or '.join(HDF5)}")
    check_target("bank", path, overwrite, "bank of engine.evaluate", is_read_by(lambda file: read_bank(file, "`bank`")))
