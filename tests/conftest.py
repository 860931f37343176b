"""Shared by all tests: a tiny model of random weights, and real MPI runs of the front door."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from tiny import make_tiny_model

settings.register_profile("slow machine", deadline=None)
settings.load_profile("slow machine")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def no_shared_memory_left():
    """Remove what aborted runs of this session left in shared memory and no process uses any more."""
    before = set(Path("/dev/shm").glob("mpich*"))
    yield
    left = set(Path("/dev/shm").glob("mpich*")) - before
    young = [file.stat().st_mtime + 10 - time.time() for file in left if file.exists()]
    time.sleep(max([0, *young]))  # a run of somebody else's that is just beginning has not mapped its own yet
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            used |= {line.split()[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
        except OSError:
            continue
    for leftover in left:
        if str(leftover) not in used:
            leftover.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a surrounding MPI or Slurm job put there."""
    kept = {k: v for k, v in os.environ.items() if not re.match(r"PMI|PMIX|OMPI|HYDRA|MPI|SLURM", k)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}


def mpiexec() -> str:
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec beside this Python nor on the PATH")
    return found


def command(ranks: int, *arguments: object, module: str = "engine.sample") -> list[str]:
    return [mpiexec(), "-n", str(ranks), sys.executable, "-m", module, *map(str, arguments)]


def launch(ranks: int, *arguments: object, module: str = "engine.sample", **extra: str) -> subprocess.CompletedProcess:
    """Run a module on so many ranks to its end."""
    return subprocess.run(
        command(ranks, *arguments, module=module),
        cwd=ROOT,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=300,
    )


def verify(out: Path) -> tuple[int, str]:
    """Exit status and the line that ``engine.verify`` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "engine.verify", str(out)], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    return done.returncode, done.stdout.strip() + done.stderr.strip()


def descendants(pid: int) -> list[int]:
    """All processes below one, itself included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        queue += children.get(one, [])
    return found


def ranks_below(pid: int, module: str = "engine.sample") -> list[int]:
    """The Python processes of a run, by their command lines."""
    found = []
    for one in descendants(pid):
        try:
            words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module.encode() in words and b"-n" not in words:
            found.append(one)
    return found


class Running:
    """A run that a test watches, signals or kills; what it leaves in shared memory is swept at the end."""

    def __init__(self, ranks: int, *arguments: object, **extra: str) -> None:
        self.shared = set(Path("/dev/shm").glob("mpich*"))
        self.process = subprocess.Popen(
            command(ranks, *arguments),
            cwd=ROOT,
            env=environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until(self, reached: Callable[[], bool], seconds: float = 120) -> bool:
        """Whether the moment came before the run ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if reached():
                return True
            if self.process.poll() is not None:
                return reached()
            time.sleep(0.005)
        raise AssertionError(f"the moment did not come in {seconds} s")

    def kill(self) -> None:
        """SIGKILL to every process of the run."""
        for pid in descendants(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.end()

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Exit status and output, when it has ended."""
        text, _ = self.process.communicate(timeout=seconds)
        for leftover in set(Path("/dev/shm").glob("mpich*")) - self.shared:
            leftover.unlink(missing_ok=True)
        return self.process.returncode, text


def lines_of(path: Path) -> Sequence[str]:
    return path.read_text().splitlines() if path.exists() else []
