"""Conversion of published checkpoints into model folders; each system has a file."""
