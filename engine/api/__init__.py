"""The Python door: a pipeline that samples, an image that is read where it is sliced, plans as tables."""
