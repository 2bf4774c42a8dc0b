"""Scale a tensor in place. Kernel: ``kernels_src/scale.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import Specialisation
from hipattn.kernels.rows import as_rows, check_device, share, vector_width
from hipattn.runtime.module import Arguments
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["ScaleParams", "launch", "specialise"]


class ScaleParams(Arguments):
    """What ``scale_inplace`` takes."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("blocks_per_row", ctypes.c_uint32),
        ("factor", ctypes.c_float),
    ]


def specialise(dtype: str, constants: Mapping[str, int]) -> Specialisation:
    """Return the kernel for a dtype and the constants of a `hipattn.kernels.rows.Share`."""
    return Specialisation("scale", "scale_inplace", ScaleParams, constants, {"scalar": dtype})


def launch(x: DeviceTensor, factor: float, *, stream: Stream) -> None:
    """Multiply a tensor by a number, in place: in float32, rounded once to the tensor's dtype.

    Parameters
    ----------
    x : [..., columns]
        float32, float16 or bfloat16; contiguous, or rows of contiguous elements at an even distance.
    factor
        Rounded to float32.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        The layout is not accepted, or `x` is on another device than `stream`.
    HipError
        The launch fails.
    """
    check_device(stream, x=x)
    rows, columns, stride = as_rows("x", x.shape, x.strides)
    if not rows * columns:
        return
    vector = vector_width((x.pointer, x.dtype.itemsize, (stride,) if rows > 1 else ()))
    constants, blocks_per_row, config = share(rows, columns, vector)
    kernel = load(specialise(x.dtype.name, constants), stream.device)
    arguments = ScaleParams(x.pointer, rows, columns, stride, blocks_per_row, factor)
    kernel.launch(stream, config, arguments)
    x.buffer.used_on(stream)
