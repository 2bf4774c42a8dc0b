"""Attention: the function, the staged pipeline, the KV cache, and the NumPy oracle."""
