"""Convert between dtypes. Kernel: ``kernels_src/convert.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operand
from hipattn.kernels.rows import BLOCK, as_rows, joined, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["ConvertParams", "defaults", "launch", "specialise"]


class ConvertParams(Arguments):
    """What ``convert`` takes."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("in_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
    )


def specialise(in_dtype: str, out_dtype: str, vector: int) -> Specialisation:
    """Return the kernel for two dtypes and `vector` elements an access."""
    types = {"in_scalar": in_dtype, "out_scalar": out_dtype}
    return Specialisation("convert", "convert", ConvertParams, {"BLOCK": BLOCK, "VECTOR": vector}, types)


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for contiguous arrays."""
    for in_dtype, out_dtype in permutations(SCALARS, 2):
        yield specialise(in_dtype, out_dtype, widest(in_dtype, out_dtype))


def launch(x: DeviceTensor, out: DeviceTensor, *, stream: Stream) -> None:
    """Write `x` to `out` in the dtype of `out`, rounded to nearest even.

    Parameters
    ----------
    x, out : [..., columns], of one shape
        float32, float16 or bfloat16; contiguous, or rows of contiguous elements at an even distance. They do
        not overlap.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes differ, a layout is not accepted, or a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    plan = _plan(stream.device, operand(stream, "x", x), operand(stream, "out", out))
    if plan is None:
        return
    kernel, config, sizes = plan
    kernel.launch(stream, config, ConvertParams(*addresses(stream, x, out), *sizes))


@lru_cache(maxsize=4096)
def _plan(device: Device, source: Operand, result: Operand) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    _, in_dtype, in_shape, in_strides, in_address = source
    _, out_dtype, out_shape, out_strides, out_address = result
    if in_shape != out_shape:
        raise ArgumentError(f"out has shape {out_shape}; x has {in_shape}")
    for name, dtype in (("x", in_dtype), ("out", out_dtype)):
        as_dtype(dtype, f"{name}'s dtype")
    x, out = joined(as_rows("x", in_shape, in_strides), as_rows("out", out_shape, out_strides))
    if not x.rows * x.columns:
        return None
    vector = vector_width(
        (in_address, in_dtype.itemsize, (x.stride,)), (out_address, out_dtype.itemsize, (out.stride,))
    )
    row_shift, blocks_per_row, config = share(x.rows, x.columns, vector)
    kernel = load(specialise(in_dtype.name, out_dtype.name, vector), device)
    return kernel, config, (*x, out.stride, row_shift, blocks_per_row)
