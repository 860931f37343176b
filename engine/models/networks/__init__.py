"""The network architectures, under their published parameter names."""
