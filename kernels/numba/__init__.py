"""Just-in-time CPU kernels: plain loops that Numba compiles when they are first called."""
