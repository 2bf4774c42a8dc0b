"""Rows of a table by index, and a sum of up to three. Kernel: ``kernels_src/embedding.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hipattn.arguments import number
from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rows import BLOCK, as_rows, check_device, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import INT32, DeviceTensor, as_dtype

__all__ = ["EmbeddingParams", "defaults", "launch", "specialise"]

MAX_ADDED = 2
_Pointers = ctypes.c_void_p * (1 + MAX_ADDED)
_Sizes = ctypes.c_int64 * (1 + MAX_ADDED)


class EmbeddingParams(Arguments):
    """What ``embedding`` takes."""

    _fields_ = (
        ("tables", _Pointers),
        ("ids", _Pointers),
        ("out", ctypes.c_void_p),
        ("sizes", _Sizes),
        ("strides", _Sizes),
        ("ids_batch", _Sizes),
        ("ids_token", _Sizes),
        ("rows", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
        ("scale", ctypes.c_float),
    )


def specialise(dtype: str, out_dtype: str, vector: int, *, added: int = 0) -> Specialisation:
    """Return the kernel for the tables' dtype and the result's, `vector` elements an access, `added` more tables."""
    constants = {"BLOCK": BLOCK, "VECTOR": vector, "ADDED": added}
    types = {"scalar": dtype, "out_scalar": out_dtype}
    return Specialisation("embedding", "embedding", EmbeddingParams, constants, types)


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned rows in one dtype, of one table and of three."""
    for dtype, added in product(SCALARS, (0, MAX_ADDED)):
        yield specialise(dtype, dtype, widest(dtype), added=added)


def launch(
    table: DeviceTensor,
    ids: DeviceTensor | NDArray[np.integer],
    out: DeviceTensor,
    *,
    scale: float = 1.0,
    added: Sequence[tuple[DeviceTensor, DeviceTensor | NDArray[np.integer]]] = (),
    stream: Stream,
) -> None:
    """Write row `ids[i]` of `table` times `scale`, plus rows of further tables, to row i of `out`.

    The sum is formed in float32 and rounded once to the dtype of `out`.

    Parameters
    ----------
    table : [size, columns]
        float32, float16 or bfloat16, contiguous rows at any distance.
    ids : [tokens] or [batch, tokens]
        On the device int32, any strides: a row whose id is not in the table becomes NaN. Or a NumPy array of integers,
        which is checked, then uploaded: the stream is synchronised.
    out : [..., columns], [...] the shape of `ids`
        Any of the dtypes; rows of contiguous elements at an even distance. Other memory than the tables.
    scale
        Rounded to float32.
    added : sequence of (table, ids)
        Up to two more tables of the same dtype and width, each with its ids: positions and types, as BERT has them.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes, dtypes or layouts do not fit, an id in a NumPy array is not in its table, or a tensor is on another
        device than `stream`.
    HipError
        The launch fails.
    """
    if len(added) > MAX_ADDED:
        raise ArgumentError(f"added has {len(added)} tables; it takes at most {MAX_ADDED}")
    factor = number("scale", scale)
    names = ("table", "ids"), *((f"added[{i}]'s table", f"added[{i}]'s ids") for i in range(len(added)))
    pairs = (table, ids), *added
    tensors = {"out": out}
    for (name, ids_name), (each, indices) in zip(names, pairs, strict=True):
        if not isinstance(indices, DeviceTensor):
            check_device(stream, out=out, **{name: each})
            indices = DeviceTensor.from_numpy(_checked(ids_name, indices, name, each), stream=stream)
        tensors |= {name: each, ids_name: indices}
    plan = _plan(stream.device, *operands(stream, tensors))
    if plan is None:
        return
    kernel, config, sizes = plan
    result, *lookups = addresses(stream, *tensors.values())
    pointers = _Pointers(*lookups[::2]), _Pointers(*lookups[1::2])
    kernel.launch(stream, config, EmbeddingParams(*pointers, result, *sizes, factor))


def _checked(name: str, ids: NDArray[np.integer], table_name: str, table: DeviceTensor) -> NDArray[np.int32]:
    array = np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"{name} is {array.dtype.name}; it takes integers")
    size = table.shape[0] if table.shape else 0
    wrong = np.argwhere((array < 0) | (array >= size))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ArgumentError(f"{name} has {array[at]} at {at}; {table_name} has rows 0 to {size - 1}")
    return array.astype(np.int32)


@lru_cache(maxsize=4096)
def _plan(device: Device, result: Operand, *lookups: Operand) -> tuple[Kernel, LaunchConfig, tuple[Any, ...]] | None:
    _, out_dtype, out_shape, out_strides, out_address = result
    as_dtype(out_dtype, "out's dtype")
    tables, ids = lookups[::2], lookups[1::2]
    _, dtype, table_shape, *_ = tables[0]
    as_dtype(dtype, "table's dtype")
    ids_shape = ids[0][2]
    if len(ids_shape) not in (1, 2):
        raise ArgumentError(f"ids has shape {ids_shape}; it takes [tokens] or [batch, tokens]")
    sizes, strides, steps, accesses = [], [], [], []
    for (name, kind, shape, row, address), (ids_name, ids_dtype, indices, step, _) in zip(tables, ids, strict=True):
        if len(shape) != 2 or shape[1] != table_shape[-1]:
            raise ArgumentError(f"{name} has shape {shape}; it takes [size, {table_shape[-1] if shape else 'columns'}]")
        if kind != dtype:
            raise ArgumentError(f"{name} is {kind.name}; it takes {dtype.name}, as table")
        if ids_dtype != INT32 or indices != ids_shape:
            raise ArgumentError(f"{ids_name} is {ids_dtype.name} {indices}; it takes int32 {ids_shape}")
        sizes.append(shape[0])
        strides.append(as_rows(name, shape, row).stride)
        steps.append((0, *step)[-2:])
        accesses.append((address, dtype.itemsize, (strides[-1],)))
    columns = table_shape[1]
    if out_shape != (*ids_shape, columns):
        raise ArgumentError(f"out has shape {out_shape}; it takes {(*ids_shape, columns)}")
    rows, _, out_stride = as_rows("out", out_shape, out_strides)
    if not rows * columns:
        return None
    vector = vector_width(*accesses, (out_address, out_dtype.itemsize, (out_stride,)))
    row_shift, blocks_per_row, config = share(rows, columns, vector)
    kernel = load(specialise(dtype.name, out_dtype.name, vector, added=len(tables) - 1), device)
    numbers = (_Sizes(*values) for values in (sizes, strides, *zip(*steps, strict=True)))
    return kernel, config, (*numbers, rows, ids_shape[-1], columns, out_stride, row_shift, blocks_per_row)
