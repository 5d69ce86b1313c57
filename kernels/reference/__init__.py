"""NumPy kernels, computed in float64: the oracle of every test, and the last fallback."""
