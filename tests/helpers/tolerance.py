"""How far a result may be from float64, by dtype.

Attention is right when its error is at most twice that of the same formula evaluated in the input dtype.
Chance can make that error tiny where an output has few elements, so the bound is never below `FLOOR`,
relative to the largest output: for float16 and bfloat16 twice what rounding it costs, for float32 1e-5.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from hipattn.attn.reference import attention

__all__ = ["BFLOAT16", "DTYPES", "EPSILON", "FLOOR", "attention_bound", "magnitude"]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)

# The distance from 1 to the next number; rounding to nearest costs half of it, relatively.
EPSILON = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float16): 2.0**-10, BFLOAT16: 2.0**-7}
FLOOR = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2.0**-10, BFLOAT16: 2.0**-7}


def attention_bound(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], *, expected: NDArray[Any] | None = None, **options: Any
) -> float:
    """Return the largest absolute error that attention over these inputs may have.

    Parameters
    ----------
    q, k, v : ndarray of float32, float16 or bfloat16
    expected : ndarray, optional
        The float64 result, where it is at hand.
    **options
        What `hipattn.attn.reference.attention` takes.
    """
    options = {name: value for name, value in options.items() if name not in ("return_lse", "dtype")}
    if expected is None:
        expected = attention(q, k, v, **options)
    low = attention(q, k, v, dtype=q.dtype, **options).astype(np.float64)
    # Where the low-precision formula overflows it bounds nothing.
    both = np.isfinite(low) & np.isfinite(expected)
    error = np.abs(np.where(both, low, 0) - np.where(both, expected, 0)).max(initial=0.0)
    return max(2 * float(error), FLOOR[q.dtype] * magnitude(expected))


def magnitude(array: NDArray[Any]) -> float:
    """Return the largest finite absolute value, 0 if there is none."""
    values = np.abs(array.astype(np.float64))
    return float(values.max(initial=0.0, where=np.isfinite(values)))
