"""A decoder layer's steps around attention, in NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["rms_norm", "rope"]

Array = NDArray[np.float64]


def rms_norm(x: NDArray[Any], weight: NDArray[Any], eps: float) -> Array:
    """Return x / √(mean(x²) + eps) · weight over the last dimension, in float64."""
    x = x.astype(np.float64)
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight)


def rope(x: NDArray[Any], positions: NDArray[np.integer], base: float) -> Array:
    """Turn the pairs (x[2i], x[2i+1]) of each head by position · base^(−2i / head_dim): interleaved style.

    A GGUF of the llama architecture needs this style. The model was trained with the half-split one, which
    turns the pairs (x[i], x[i + head_dim/2]); the rows of its Q and K weights were reordered when the GGUF
    was made, so that these pairs lie at (2i, 2i+1). Q and K being reordered alike, q · k is the same.

    Parameters
    ----------
    x
        [batch, seq, heads, head_dim], head_dim even.
    positions
        [seq], the position of each row of the sequence.
    base
        The frequencies' base.

    Returns
    -------
    array of float64
        x's shape.
    """
    pairs = x.reshape(*x.shape[:-1], -1, 2).astype(np.float64)
    count = pairs.shape[-2]
    angles = positions[:, None] * float(base) ** (-np.arange(count) / count)
    # As complex numbers, a pair is turned by one product. [seq, 1, pairs]: the same for all heads.
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None, :]
    return np.stack((turned.real, turned.imag), axis=-1).reshape(x.shape)
