"""Figures and pictures of a training for TensorBoard, where that is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


class Board:
    """What is shown of a training; nothing where TensorBoard is not installed.

    Args:
        folder: Where its event files go.
        step: The step that the run goes on from: what a killed run wrote after it is not shown.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Show one number each."""
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture, uint8 (h, w, 3)."""
        if self.writer is not None:
            self.writer.add_image(name, picture, step, dataformats="HWC")
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
