"""A job from start to end: prepared, sampled level by level, decoded, written, signed."""
