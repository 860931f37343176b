"""Embeddings of images: patches of a slide or a folder through an extractor into one HDF5 file."""
