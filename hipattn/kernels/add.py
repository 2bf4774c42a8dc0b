"""Add two tensors, or a row to each row of one. Kernel: ``kernels_src/add.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rows import BLOCK, as_rows, joined, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["AddParams", "defaults", "launch", "specialise"]


class AddParams(Arguments):
    """What ``add`` takes."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("a_stride", ctypes.c_int64),
        ("b_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
    )


def specialise(a_dtype: str, b_dtype: str, out_dtype: str, vector: int) -> Specialisation:
    """Return the kernel for three dtypes and `vector` elements an access."""
    types = {"scalar": a_dtype, "other_scalar": b_dtype, "out_scalar": out_dtype}
    return Specialisation("add", "add", AddParams, {"BLOCK": BLOCK, "VECTOR": vector}, types)


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned rows of one dtype."""
    for dtype in SCALARS:
        yield specialise(dtype, dtype, dtype, widest(dtype))


def launch(a: DeviceTensor, b: DeviceTensor, out: DeviceTensor | None = None, *, stream: Stream) -> None:
    """Write `a` + `b`, in float32, rounded once to the dtype of `out`.

    Parameters
    ----------
    a : [..., columns]
        float32, float16 or bfloat16; contiguous, or rows of contiguous elements at an even distance.
    b : like `a`, or [columns]
        Any of the dtypes. A single row is added to each row of `a`.
    out : like `a`, any of the dtypes
        Default: `a` itself. It may be `b` too; other memory otherwise: they do not overlap.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes do not fit, a layout or dtype is not accepted, or a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    out = a if out is None else out
    plan = _plan(stream.device, operands(stream, {"a": a, "b": b, "out": out}))
    if plan is None:
        return
    kernel, config, sizes = plan
    kernel.launch(stream, config, AddParams(*addresses(stream, a, b, out), *sizes))


@lru_cache(maxsize=4096)
def _plan(device: Device, tensors: tuple[Operand, ...]) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    shapes = [shape for _, _, shape, _, _ in tensors]
    if shapes[2] != shapes[0]:
        raise ArgumentError(f"out has shape {shapes[2]}; a has {shapes[0]}")
    if shapes[1] not in (shapes[0], shapes[0][-1:]):
        raise ArgumentError(f"b has shape {shapes[1]}; it takes {shapes[0]} or {shapes[0][-1:]}")
    dtypes = [as_dtype(dtype, f"{name}'s dtype") for name, dtype, *_ in tensors]
    each = [as_rows(name, shape, strides) for name, _, shape, strides, _ in tensors]
    if shapes[1] == shapes[0]:
        each = list(joined(*each))
    rows, columns, _ = each[0]
    if not rows * columns:
        return None
    strides = [x.stride for x in each]
    vector = vector_width(
        *((address, dtype.itemsize, (step,)) for (_, dtype, *_, address), step in zip(tensors, strides, strict=True))
    )
    row_shift, blocks_per_row, config = share(rows, columns, vector)
    a_dtype, b_dtype, out_dtype = (dtype.name for dtype in dtypes)
    kernel = load(specialise(a_dtype, b_dtype, out_dtype, vector), device)
    return kernel, config, (rows, columns, *strides, row_shift, blocks_per_row)
