"""Names of the solvers; without numpy, so that ``--help`` does not wait for it."""

SOLVERS = ("ddim", "ddpm", "dpmpp2m", "euler")
