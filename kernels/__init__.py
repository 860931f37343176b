"""The arithmetic inside the loop: no I/O, no ranks, no imports from engine."""
