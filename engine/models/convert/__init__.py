"""Published checkpoints -> model folders; one file a system."""
