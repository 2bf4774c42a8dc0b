"""Convert between dtypes. Kernel: ``kernels_src/convert.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.rows import as_rows, check_device, share, vector_width
from hipattn.runtime.module import Arguments
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["ConvertParams", "launch", "specialise"]


class ConvertParams(Arguments):
    """What ``convert`` takes."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("in_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("blocks_per_row", ctypes.c_uint32),
    ]


def specialise(in_dtype: str, out_dtype: str, constants: Mapping[str, int]) -> Specialisation:
    """Return the kernel for two dtypes and the constants of a `hipattn.kernels.rows.Share`."""
    types = {"in_scalar": in_dtype, "out_scalar": out_dtype}
    return Specialisation("convert", "convert", ConvertParams, constants, types)


def launch(x: DeviceTensor, out: DeviceTensor, *, stream: Stream) -> None:
    """Write `x` to `out` in the dtype of `out`, rounded to nearest even.

    Parameters
    ----------
    x, out : [..., columns], of one shape
        float32, float16 or bfloat16; contiguous, or rows of contiguous elements at an even distance. They do not
        overlap.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes differ, a layout is not accepted, or a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    check_device(stream, x=x, out=out)
    if x.shape != out.shape:
        raise ArgumentError(f"out has shape {out.shape}; x has {x.shape}")
    (rows, columns, in_stride), (_, _, out_stride) = (
        as_rows(name, tensor.shape, tensor.strides) for name, tensor in (("x", x), ("out", out))
    )
    if not rows * columns:
        return
    if in_stride == out_stride == columns:
        rows, columns = 1, rows * columns
    vector = vector_width(
        *(
            (t.pointer, t.dtype.itemsize, (stride,) if rows > 1 else ())
            for t, stride in ((x, in_stride), (out, out_stride))
        )
    )
    constants, blocks_per_row, config = share(rows, columns, vector)
    kernel = load(specialise(x.dtype.name, out.dtype.name, constants), stream.device)
    arguments = ConvertParams(x.pointer, out.pointer, rows, columns, in_stride, out_stride, blocks_per_row)
    kernel.launch(stream, config, arguments)
    for tensor in (x, out):
        tensor.buffer.used_on(stream)
