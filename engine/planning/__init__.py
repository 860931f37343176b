"""Who evaluates which window, who owns which shard, what travels: integers. No torch, no MPI, no files."""
