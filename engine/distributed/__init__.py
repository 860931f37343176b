"""Ranks and what travels between them. The only room that imports mpi4py."""
