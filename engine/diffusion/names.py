"""Names that options and model folders are checked against; without numpy, so that ``--help`` does not wait for it."""

SOLVERS = ("ddim", "ddpm", "dpmpp2m", "euler", "plms")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing", "smallest_stride")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")
ETA_VARIANCES = ("posterior", "one_timestep")
