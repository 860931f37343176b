"""The picture of a run under way is the same from any number of ranks."""

import numpy as np
import pytest
from mpi4py import MPI

import engine
from engine.api.call import Stopped
from engine.storage.output import Output
from engine.viewing.live_picture import live_picture_of


def test_the_picture_is_the_same_from_any_number_of_ranks(ranks, tmp_path_factory):
    folder = ranks.bcast(tmp_path_factory.mktemp("live") if ranks.rank == 0 else None)
    pictures = []
    for comm, name in ((ranks.comm, "together"), (MPI.COMM_SELF, f"alone{ranks.rank}")):
        pipe = engine.Pipeline(size=(200, 330), shard=64, chunk=64, labels="example", steps=2)
        with pytest.raises(Stopped):
            pipe(out=folder / f"{name}.zarr", live=0, progress=False, comm=comm, on_level=lambda level, *_: True)
        ranks.barrier()
        live = Output(folder / f"{name}.zarr").live
        picture = live_picture_of(live.parts(), ())
        assert picture.level == 1
        assert len(live.ranks(9)) <= comm.size
        pictures.append(picture.pixels)
    np.testing.assert_array_equal(*pictures)
    assert (pictures[0][..., 3] == 255).all()
