"""Shared by all tests: a tiny model of random weights, and the end of every process that a session started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from damages import JOB, make_killed, make_whole
from hypothesis import HealthCheck, settings
from launching import close_pools, left_behind
from tiny import make_tiny_model

settings.register_profile("slow machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow machine")

ONE_BY_ONE = ("test_families", "test_runs", "test_evaluations", "test_kernels")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Tests of a file share what one of them has made: pytest-xdist deals whole files, but for those named here."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return nodeid if Path(file).stem in ONE_BY_ONE else file

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind():
    """End the pools of ranks; fail where a process outlives the session."""
    yield
    close_pools()
    if MPI := sys.modules.get("mpi4py.MPI"):
        MPI.Finalize()  # pytest-xdist ends its workers at once, and MPI would leave a file in shared memory
    assert not left_behind()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def job(tiny_model):
    """The job whose outputs are damaged and killed."""
    return ("--model", tiny_model, *JOB)


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """Its finished output."""
    return make_whole(job, tmp_path_factory.mktemp("whole") / "out.zarr")


@pytest.fixture(scope="module")
def killed(job, tmp_path_factory):
    """Its output after a kill."""
    return make_killed(job, tmp_path_factory.mktemp("killed") / "out.zarr")
