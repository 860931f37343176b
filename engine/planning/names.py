"""Names and limits that options are checked against; without numpy, so that ``--help`` does not wait for it."""

COVERS = ("shifted", "random", "strided")
WEIGHTS = ("uniform", "gaussian", "hann")
LARGEST_LABEL = 63  # labels that occur in a window are counted in 64 bits
LARGEST_SIDE = 2**31  # px, of an image
