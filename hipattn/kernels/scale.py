"""Scale a tensor in place. Kernel: ``kernels_src/scale.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.kernels.operands import Operand, operand
from hipattn.kernels.rows import BLOCK, as_rows, joined, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["ScaleParams", "defaults", "launch", "specialise"]


class ScaleParams(Arguments):
    """What ``scale_inplace`` takes."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
        ("factor", ctypes.c_float),
    )


def specialise(dtype: str, vector: int) -> Specialisation:
    """Return the kernel for a dtype and `vector` elements an access."""
    return Specialisation("scale", "scale_inplace", ScaleParams, {"BLOCK": BLOCK, "VECTOR": vector}, {"scalar": dtype})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for contiguous tensors."""
    for dtype in SCALARS:
        yield specialise(dtype, widest(dtype))


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
    plan = _plan(stream.device, operand(stream, "x", x))
    if plan is None:
        return
    kernel, config, sizes = plan
    x.buffer.used_on(stream)
    kernel.launch(stream, config, ScaleParams(x.pointer, *sizes, factor))


@lru_cache(maxsize=4096)
def _plan(device: Device, x: Operand) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    name, dtype, shape, strides, address = x
    as_dtype(dtype, f"{name}'s dtype")
    ((rows, columns, stride),) = joined(as_rows(name, shape, strides))
    if not rows * columns:
        return None
    vector = vector_width((address, dtype.itemsize, (stride,)))
    row_shift, blocks_per_row, config = share(rows, columns, vector)
    return load(specialise(dtype.name, vector), device), config, (rows, columns, stride, row_shift, blocks_per_row)
