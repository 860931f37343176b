"""The mathematics of one window: noise levels, solvers, conditions, guidance. No ranks, no files."""
