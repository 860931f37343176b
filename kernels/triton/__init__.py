"""The kernels in Triton, equal to their torch versions bit for bit (one exponential: 2 ulp)."""
