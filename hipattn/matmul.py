"""Matrix products of tensors, through hipBLAS."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from hipattn.errors import ArgumentError
from hipattn.kernels.rows import check_device
from hipattn.runtime.blas import Blas, Matrices, Product
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["matmul"]


def matmul(
    a: DeviceTensor, b: DeviceTensor, out: DeviceTensor, *, accumulate: bool = False, stream: Stream
) -> DeviceTensor:
    """Write `a` @ `b`, accumulated in float32 and rounded once, to `out`.

    Parameters
    ----------
    a : [*batch, m, k]
        float32, float16 or bfloat16; one of the last two strides is 1.
    b : [*batch, k, n]
        Of a's dtype, likewise: the transposed view of a weight of [n, k] will do.
    out : [*batch, m, n]
        Of a's dtype or float32; contiguous rows. Other memory than `a` and `b`.
    accumulate
        Add to what `out` holds, before rounding.
    stream
        Where the product is added.

    Returns
    -------
    out : DeviceTensor

    Raises
    ------
    ArgumentError
        Shapes or dtypes do not fit, strides are none that hipBLAS takes, or a tensor is on another device than
        `stream`.
    HipError
        A call fails.
    """
    check_device(stream, a=a, b=b, out=out)
    product = _product(*((x.shape, x.strides, x.dtype) for x in (a, b, out)), accumulate)
    for tensor in (a, b, out):
        tensor.buffer.used_on(stream)
    product.run(Blas.of(stream.device), stream, a.native, b.native, out.native)
    return out


_Operand = tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any]]


@lru_cache(maxsize=4096)
def _product(a: _Operand, b: _Operand, out: _Operand, accumulate: bool) -> Product:
    operands = []
    for name, (shape, strides, dtype) in (("a", a), ("b", b), ("out", out)):
        if len(shape) < 2:
            raise ArgumentError(f"{name} has shape {shape}; it takes [*batch, rows, columns]")
        operands.append(Matrices(shape, strides, as_dtype(dtype, f"{name}'s dtype").name))
    return Product(*operands, beta=float(accumulate))
