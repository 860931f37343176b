"""A file system that loses its power: ext4 in a file, shut down by the kernel without a flush of its journal.

What a program wrote and did not sync is lost then, as when a machine loses its power. Needs root and loop devices.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from damages import MOMENTS
from launching import Running, launch_alone, sha, verify

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

    def unmount(self) -> None:
        """Wait for the programs that use it to end, and take it away."""
        for _ in range(300):
            if subprocess.run(["umount", str(self.folder)], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.folder} is in use after 30 s")

    def start_again(self) -> None:
        """Mount it as after a start of the machine; the programs that used it must have ended."""
        self.unmount()
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
        made.unmount()
        made.file.unlink()


def lose_power_and_resume(whole: Path, place: Path, seed: int, job: tuple) -> tuple[str, tuple[int, str]]:
    """A run whose disk loses its power at a moment drawn from the seed ends, given again, in the same bytes.

    Returns:
        The moment, and what ``engine.verify`` says of what is on the disk then.
    """
    drawn = random.Random(f"power {seed}")
    with disk(place) as made:
        out, log = made.folder / "out.zarr", place / "log.jsonl"
        run = Running(2, *job, "--out", out, "--json-log", log)
        moment = drawn.choice(list(MOMENTS))
        run.wait_until(lambda: MOMENTS[moment](out, log))
        time.sleep(drawn.random() * 0.3)
        made.lose_power()
        run.kill()
        made.start_again()
        state = verify(out)
        done = launch_alone(3, *job, "--out", out)
        text = f"{moment} {seed}: after it {state}: {done.returncode}: {done.stdout}{done.stderr}"
        assert done.returncode == 0, text
        assert sha(out) == sha(whole), text
        return moment, state
