"""One rank of ``launching.RankPool``: runs the commands that pytest asks for, one after the other.

``mpiexec -n N python tests/rank_pool.py SOCKET``. A command is a module and its arguments; its ``main`` is called as
``python -m`` calls it. It ends when pytest does.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Client
from pathlib import Path

from engine.command_line import launched_rank


@contextmanager
def printing_to(files: Sequence[Path]) -> Iterator[None]:
    """Send what this process writes to its standard output and error to two files."""
    kept = [os.dup(1), os.dup(2)]
    try:
        for number, file in enumerate(files, 1):
            opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
            os.close(opened)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def status_of(module: str, arguments: Sequence[str]) -> int:
    """The exit status that ``python -m module`` would have."""
    try:
        return int(importlib.import_module(module).main(arguments) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1


def serve(address: str) -> None:
    rank, folder = launched_rank(), Path(address).parent
    with Client(address) as pytest:
        pytest.send(rank)
        while True:
            try:
                module, arguments = pytest.recv()
            except EOFError:
                return
            with printing_to([folder / f"{rank}.{name}.txt" for name in ("out", "err")]):
                status = status_of(module, arguments)
            pytest.send(status)


if __name__ == "__main__":
    serve(sys.argv[1])
