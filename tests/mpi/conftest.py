"""Tests that are right at any number of ranks: ``mpiexec -n N python -m pytest tests/mpi``.

Every rank runs every test. A test's verdict is gathered, so that a failure on one rank fails on all; only rank 0
reports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from engine.distributed.launch import world
from engine.distributed.ranks import Ranks

RANKS = world()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield RANKS
    RANKS.flush()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    problem = ""
    try:
        yield
    except (pytest.skip.Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # pytest.fail, of pytest.raises, is no Exception
        problem = f"{type(error).__name__}: {error}"
        failed = error
    problems = [f"rank {rank}: {text}" for rank, text in enumerate(RANKS.allgather(problem)) if text]
    if problem:
        raise failed
    if problems:
        raise AssertionError("; ".join(problems))


def pytest_configure(config):
    if RANKS.rank:
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - for as long as the process runs
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if reporter:
            reporter._tw._file = sys.stdout
