"""What ``python -m engine.train`` is made of: patches, the loop, and one file for each network."""
