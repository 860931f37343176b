"""Real MPI runs of the commands: started once for many jobs, or by themselves where a test kills or signals them."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

import engine.verify
from engine.command_line import STOPPED

ROOT = Path(__file__).parents[1]
LONGEST = 900  # seconds until a run counts as hanging: far more than any takes, on a machine with ten neighbours too
MARK = {"SLIDEFIELD_TESTS": str(os.getpid())}  # in the environment of every process that this session starts


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a surrounding MPI or Slurm job put there."""
    kept = {k: v for k, v in os.environ.items() if not re.match(r"PMI|PMIX|OMPI|HYDRA|MPI|SLURM", k)}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **MARK, **extra}


def mpiexec() -> str:
    beside = Path(sys.executable).with_name("mpiexec")
    command = str(beside) if beside.exists() else shutil.which("mpiexec")
    if command is None:
        pytest.skip("no mpiexec beside this Python nor on the PATH")
    return command


def command(ranks: int, *arguments: object, module: str = "engine.sample") -> list[str]:
    return [mpiexec(), "-n", str(ranks), sys.executable, "-m", module, *map(str, arguments)]


def execute(*words: object, seconds: float = LONGEST, **extra: str) -> subprocess.CompletedProcess:
    """Run a command line to its end, in the repository's root."""
    line = [str(word) for word in words]
    return subprocess.run(
        line, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=seconds, check=False
    )


def launch_alone(
    ranks: int, *arguments: object, module: str = "engine.sample", **extra: str
) -> subprocess.CompletedProcess:
    """Run a module on so many ranks that are started for it, to their end."""
    return execute(*command(ranks, *arguments, module=module), **extra)


def launch(ranks: int, *arguments: object, module: str = "engine.sample", **extra: str) -> subprocess.CompletedProcess:
    """Run a module's ``main`` on so many ranks to its end.

    The ranks are those of the pool, which are started once a session, but where the run needs an environment of its
    own. ``test_a_pool_of_ranks_does_what_a_start_of_its_own_does`` shows that the two are the same.
    """
    if extra:
        return launch_alone(ranks, *arguments, module=module, **extra)
    if ranks not in POOLS:
        POOLS[ranks] = RankPool(ranks)
    try:
        return POOLS[ranks].run(module, [str(word) for word in arguments])
    finally:
        if POOLS[ranks].ended or POOLS[ranks].runs >= MOST_RUNS:
            POOLS.pop(ranks).close()


MOST_RUNS = 500  # of a pool: every job makes two communicators, of which MPI has 2,048


class RankPool:
    """MPI ranks under one ``mpiexec`` that run one job after the other; each is a process of ``rank_pool.py``."""

    def __init__(self, ranks: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slidefield-pool-"))
        self.ended, self.runs = False, 0
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address := str(self.folder / "socket"))
            listener.listen(ranks)
            listener.settimeout(1)
            line = [mpiexec(), "-n", str(ranks), sys.executable, str(ROOT / "tests" / "rank_pool.py"), address]
            self.process = subprocess.Popen(line, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL)
            connected = [self.accept(listener) for _ in range(ranks)]
        by_rank: dict[int, Connection] = {connection.recv(): connection for connection in connected}
        self.ranks = [by_rank[rank] for rank in range(ranks)]

    def accept(self, listener: socket.socket) -> Connection:
        """The connection of the next rank that has started."""
        while self.process.poll() is None:
            with contextlib.suppress(TimeoutError):
                return Connection(listener.accept()[0].detach())
        raise RuntimeError(f"the ranks ended as they started, with status {self.process.returncode}")

    def run(self, module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess:
        """One job on all ranks: its exit status, and what all ranks printed, in order of rank."""
        self.runs += 1
        for file in self.folder.glob("*.txt"):
            file.unlink()
        for connection in self.ranks:
            connection.send((module, list(arguments)))
        statuses, waiting, end = [], list(self.ranks), time.monotonic() + LONGEST
        try:
            while waiting:
                ready = wait(waiting, max(0.0, end - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired([module, *arguments], LONGEST)
                for connection in ready:
                    waiting.remove(connection)  # type: ignore[arg-type]
                    statuses.append(connection.recv())  # type: ignore[union-attr]
            status = max(statuses)
        except (EOFError, ConnectionError):  # a rank ended all
            self.ended = True
            status = self.process.wait(LONGEST)
        except BaseException:
            self.close(kill=True)
            raise
        texts = [self.printed(name) for name in ("out", "err")]
        if self.ended:
            self.close()
        return subprocess.CompletedProcess([module, *arguments], status, *texts)

    def printed(self, name: str) -> str:
        files = (self.folder / f"{rank}.{name}.txt" for rank in range(len(self.ranks)))
        return "".join(file.read_text() for file in files if file.exists())

    def close(self, kill: bool = False) -> None:
        """End the ranks, which leave when nobody is connected any more."""
        self.ended = True
        for connection in self.ranks:
            connection.close()
        if kill:
            kill_all(self.process.pid)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            kill_all(self.process.pid)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


POOLS: dict[int, RankPool] = {}


@atexit.register
def close_pools() -> None:
    while POOLS:
        POOLS.popitem()[1].close()


def verify(out: Path) -> tuple[int, str]:
    """Exit status and the line that ``engine.verify`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        status = engine.verify.main([str(out)])
    return status, said.getvalue().strip()


def sha(out: Path) -> str:
    """The sha256 of a finished output's pixels, every shard of which is whole."""
    status, line = verify(out)
    assert status == 0, line
    return line.split("sha256 ")[1]


def tree(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*")}


def refused(folder: Path, *arguments: object, ranks: int = 2) -> str:
    """The one line that a run is refused with; nothing below ``folder`` is changed."""
    before = tree(folder)
    done = launch(ranks, *arguments)
    assert done.returncode != 0, done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout + done.stderr
    assert tree(folder) == before
    return lines[0]


def descendants(pid: int) -> list[int]:
    """All processes below one, itself included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    below, queue = [], [pid]
    while queue:
        one = queue.pop()
        below.append(one)
        queue += children.get(one, [])
    return below


def kill_all(pid: int) -> None:
    """SIGKILL to a process and all below it, until they hold no file any more; what they share in memory goes too."""
    below = descendants(pid)
    shared = {file for one in below for file in shared_memory_of(one)}
    for one in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    for file in shared:
        file.unlink(missing_ok=True)
    end = time.monotonic() + LONGEST
    while any(map(is_alive, below)):
        assert time.monotonic() < end, f"processes {below} were killed and do not end"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a thread of a process is left: what was killed in a system call goes on to the end of that."""
    states = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return any(state not in "ZX" for state in states)


def shared_memory_of(pid: int) -> list[Path]:
    """The files in shared memory that a process has mapped and that still have a name."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return []
    return [Path(line.split()[-1]) for line in lines if line.split()[-1].startswith("/dev/shm/")]


def left_behind() -> list[str]:
    """The command lines of processes of this session that still run, orphans too, after a moment to end in."""
    mark = "=".join(*MARK.items()).encode()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        running = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    running.append((process / "cmdline").read_text().replace("\0", " "))
        if not running:
            return []
        time.sleep(0.1)
    return running


def ranks_below(pid: int, module: str = "engine.sample") -> list[int]:
    """The Python processes of a run, by their command lines."""
    below = []
    for one in descendants(pid):
        try:
            words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module.encode() in words and b"-n" not in words:
            below.append(one)
    return below


class Running:
    """A run that a test watches, signals or kills."""

    def __init__(self, ranks: int, *arguments: object, module: str = "engine.sample", **extra: str) -> None:
        self.process = subprocess.Popen(
            command(ranks, *arguments, module=module),
            cwd=ROOT,
            env=environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until(self, reached: Callable[[], bool], seconds: float = LONGEST) -> bool:
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
        kill_all(self.process.pid)
        self.end()

    def end(self, seconds: float = LONGEST) -> tuple[int, str]:
        """Exit status and output, when it has ended."""
        text, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, text


def start_and_kill(
    reached: Callable[[], bool], out: Path, ranks: int, *arguments: object, log: Path | None = None
) -> str:
    """Start a run that samples into ``out`` and kill all of it at a moment; what ``engine.verify`` then says.

    On a busy machine the run may end before the kill comes; then another is started.
    """
    options = (*arguments, "--out", out, *(("--json-log", log) if log else ()))
    for _ in range(10):
        run = Running(ranks, *options)
        came = run.wait_until(reached)
        run.kill()
        status, line = verify(out)
        if came and status == STOPPED:
            return line
        assert status == 0, line
        shutil.rmtree(out)
        if log:
            log.unlink()
    raise AssertionError("ten runs ended before they were killed")


def lines_of(path: Path) -> Sequence[str]:
    return path.read_text().splitlines() if path.exists() else []
