"""A plane on demand: what pages look at is asked for, sampled by all ranks, and shown."""
