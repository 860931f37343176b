"""The only importer of mpi4py."""

from __future__ import annotations

import numpy as np


class Ranks:
    """A communicator with the few verbs this project needs."""

    def __init__(self, comm) -> None:
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def sum_(self, array: np.ndarray) -> None:
        """Sum an array over the ranks, in place. Collective."""
        if self.size > 1:
            from mpi4py import MPI

            self.comm.Allreduce(MPI.IN_PLACE, array, op=MPI.SUM)

    def share(self, value, root: int = 0):
        """The root's value, on every rank. Collective."""
        return self.comm.bcast(value, root=root)

    def barrier(self) -> None:
        self.comm.Barrier()


def world() -> Ranks:
    from mpi4py import MPI

    return Ranks(MPI.COMM_WORLD)
