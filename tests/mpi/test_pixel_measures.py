"""Measures of pixels are the same numbers on any number of ranks."""

import shutil
import tempfile
from pathlib import Path

import pytest
from mpi4py import MPI
from pictures import write_pictures

from engine.distributed.launch import ranks_of
from engine.distributed.ranks import AgreedError
from engine.evaluation.crops import crops_of
from engine.evaluation.realism import realism_measures
from engine.evaluation.sources import source_of
from engine.evaluation.two_sample import two_sample_measures


@pytest.fixture
def sets(ranks):
    """Crops of two folders."""

    def write():
        folder = Path(tempfile.mkdtemp(prefix="slidefield-"))
        write_pictures(folder / "generated", 7, 208, seed=1, soft=True)
        write_pictures(folder / "reference", 9, 208)
        return folder

    folder = ranks.on_root(write)
    yield [crops_of(source_of(folder / name, "the folder"), 64) for name in ("generated", "reference")]
    ranks.barrier()
    if ranks.rank == 0:
        shutil.rmtree(folder)


def test_realism_is_the_same_on_any_number_of_ranks(ranks, sets):
    together = realism_measures(ranks, *sets, draws=2)
    assert together == realism_measures(ranks_of(MPI.COMM_SELF), *sets, draws=2)
    assert {"sharpness at corners", "optical density R mean"} <= {measure.name for measure in together}


def test_the_two_sample_test_is_the_same_on_any_number_of_ranks(ranks, sets):
    together = two_sample_measures(ranks, *sets, steps=12)
    assert together == two_sample_measures(ranks_of(MPI.COMM_SELF), *sets, steps=12)
    assert all(measure.error > 0 for measure in together), "none is that of a network that takes all for one class"


def test_a_crop_that_one_rank_cannot_read_is_said_by_all(ranks, sets):
    ranks.barrier()  # every rank has listed the folder
    if ranks.rank == 0:
        (sets[0].source.path / "p06.png").unlink()
    ranks.barrier()
    with pytest.raises(AgreedError, match="p06"):
        realism_measures(ranks, *sets, draws=2)
    with pytest.raises(AgreedError, match="p06"):
        two_sample_measures(ranks, *sets, steps=2)
