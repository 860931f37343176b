"""A file system that loses its power: ext4 in a file, shut down by the kernel without a flush of its journal.

What a program wrote and did not sync is lost then, as when a machine loses its power. Needs root and loop devices.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2  # linux/fs.h: EXT4_IOC_SHUTDOWN; EXT4_GOING_FLAGS_NOLOGFLUSH


class Disk:
    """A disk with one file system, mounted at ``folder``."""

    def __init__(self, place: Path) -> None:
        self.file, self.folder = place / "disk.img", place / "disk"
        self.folder.mkdir()
        with self.file.open("wb") as stream:
            stream.truncate(512 * 2**20)
        execute("mkfs.ext4", "-q", "-F", self.file)
        self.mount()

    def mount(self) -> None:
        execute("mount", "-o", "loop,commit=300", self.file, self.folder)  # what is not synced waits for long

    def lose_power(self) -> None:
        """From now on nothing reaches the disk; every program that writes there gets an error."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def start_again(self) -> None:
        """Mount it as after a start of the machine; the programs that used it must have ended."""
        execute("umount", self.folder)
        checked = subprocess.run(["e2fsck", "-fy", str(self.file)], capture_output=True, text=True, check=False)
        assert checked.returncode in (0, 1), checked.stdout + checked.stderr  # 1: it replayed its journal
        self.mount()


def execute(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


@contextlib.contextmanager
def disk(place: Path) -> Iterator[Disk]:
    """A disk for a test; skips it where this machine cannot have one."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("mkfs.ext4", "mount", "umount", "e2fsck")):
        pytest.skip("to mount a file system takes root, mkfs.ext4 and e2fsck")
    try:
        made = Disk(place)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine has no loop devices: {error.stderr.decode().strip()}")
    try:
        yield made
    finally:
        execute("umount", made.folder)
        made.file.unlink()
