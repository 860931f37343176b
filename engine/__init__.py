"""Slidefield: images of any size from patch diffusion models, on any number of MPI ranks."""

__version__ = "0.1.0"
