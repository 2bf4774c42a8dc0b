"""Append keys and values to the pages of their sequences. Kernel: ``kernels_src/paged_append.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.rows import ACCESS_BYTES, BLOCK, check_device, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import INT32, DeviceTensor, as_dtype

__all__ = ["PagedAppendParams", "defaults", "launch", "specialise"]

_NEW, _POOLS = ("k", "v"), ("k_pool", "v_pool")
_POINTERS = (*_NEW, *_POOLS, "lengths", "table", "starts")
_STRIDES = (
    *(f"{name}_{axis}" for name in _NEW for axis in ("batch", "token", "head")),
    *(f"{name}_{axis}" for name in _POOLS for axis in ("page", "token", "head")),
)
_SIZES = ("batch", "tokens", "total", "max_pages", "page_size", "pages")


class PagedAppendParams(Arguments):
    """What ``paged_append`` takes."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        ("table_row", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in _SIZES),
        ("heads", ctypes.c_uint32),
        ("k_dim", ctypes.c_uint32),
        ("v_dim", ctypes.c_uint32),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
    )


def specialise(dtype: str, vector: int, *, packed: bool = False) -> Specialisation:
    """Return the kernel for a dtype, `vector` elements an access, and packed sequences."""
    constants = {"BLOCK": BLOCK, "VECTOR": vector, "PACKED": packed}
    return Specialisation("paged_append", "paged_append", PagedAppendParams, constants, {"scalar": dtype})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned rows."""
    for dtype, packed in product(SCALARS, (False, True)):
        yield specialise(dtype, widest(dtype), packed=packed)


def launch(
    k: DeviceTensor,
    v: DeviceTensor,
    k_pool: DeviceTensor,
    v_pool: DeviceTensor,
    *,
    lengths: DeviceTensor,
    block_table: DeviceTensor,
    starts: DeviceTensor | None = None,
    stream: Stream,
) -> None:
    """Write the last tokens of sequences to their pages, in one launch.

    What lengths, table and starts hold is not checked: a token that they place outside the table or the pools is not
    written, and nothing else is either.

    Parameters
    ----------
    k, v : [batch, tokens, heads_kv, head_dim or value_dim], or with `starts` [total, heads_kv, head_dim or value_dim]
        Any strides with a contiguous last dimension.
    k_pool, v_pool : [pages, page_size, heads_kv, head_dim or value_dim]
        The same dtype as `k` and `v`; any strides with a contiguous last dimension.
    lengths : [batch]
        int32, contiguous: the tokens that each sequence holds, the new ones among them, which are the last.
    block_table : [batch, max_pages]
        int32, contiguous rows: the pages of each sequence.
    starts : [batch + 1]
        int32, contiguous: the new tokens of sequence b are starts[b] to starts[b + 1] - 1 of `k` and `v`.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes, dtypes or layouts do not fit, or a tensor is on another device.
    HipError
        The launch fails.
    """
    tensors = {"k": k, "v": v, "k_pool": k_pool, "v_pool": v_pool, "lengths": lengths, "block_table": block_table}
    if starts is not None:
        tensors["starts"] = starts
    check_device(stream, **tensors)
    plan = _plan(
        stream.device, tuple((x.dtype, x.shape, x.strides, x.pointer % ACCESS_BYTES) for x in tensors.values())
    )
    if plan is None:
        return
    kernel, config, numbers = plan
    for tensor in tensors.values():
        tensor.buffer.used_on(stream)
    pointers = [x.pointer for x in tensors.values()] + [None] * (starts is None)
    kernel.launch(stream, config, PagedAppendParams(*pointers, *numbers))


_Operand = tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...], int]


@lru_cache(maxsize=4096)
def _plan(device: Device, operands: tuple[_Operand, ...]) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    rows, indices = operands[:4], operands[4:]
    packed = len(indices) == 3
    dtype = as_dtype(rows[0][0], "k's dtype")
    new, pool = ("total",) if packed else ("batch", "tokens"), ("pages", "page_size")
    for name, axes, (kind, shape, strides, _) in zip((*_NEW, *_POOLS), (new, new, pool, pool), rows, strict=True):
        if len(shape) != len(axes) + 2:
            raise ArgumentError(f"{name} has shape {shape}; it takes [{', '.join(axes)}, heads_kv, dim]")
        if shape[-1] > 1 and strides[-1] != 1:
            raise ArgumentError(f"{name} has strides {strides}; its last dimension must be contiguous")
        if kind != dtype:
            raise ArgumentError(f"{name} is {kind.name}; k is {dtype.name}, and all take the same")
    k, v, k_pool, v_pool = (shape for _, shape, _, _ in rows)
    heads, k_dim, v_dim = k[-2], k[-1], v[-1]
    pages, page_size = k_pool[:2]
    if v[:-1] != k[:-1]:
        raise ArgumentError(f"v has shape {v}; k has {k}, and they differ at most in the last dimension")
    for name, shape, dim in (("k_pool", k_pool, k_dim), ("v_pool", v_pool, v_dim)):
        if shape != (pages, page_size, heads, dim):
            raise ArgumentError(f"{name} has shape {shape}; it takes {(pages, page_size, heads, dim)}")
    if not page_size or pages * page_size >= 2**31:
        raise ArgumentError(f"k_pool has shape {k_pool}; it takes pages of 1 token or more, fewer than 2^31 in all")
    batch, max_pages = _check_indices(None if packed else k[0], indices)
    total, tokens = (k[0], 0) if packed else (k[0] * k[1], k[1])
    if not total * heads * max(k_dim, v_dim) * batch:
        return None
    if 2 * total * heads >= 2**31:
        raise ArgumentError(f"k has {total} * {heads} rows; one append takes fewer than 2^30")
    vector = vector_width(*((address, dtype.itemsize, strides[:-1]) for _, _, strides, address in rows))
    row_shift, blocks_per_row, config = share(2 * total * heads, max(k_dim, v_dim), vector)
    kernel = load(specialise(dtype.name, vector, packed=packed), device)
    steps = (step for _, _, strides, _ in rows for step in (0, *strides)[-4:-1])  # packed: no batch to step over
    sizes = batch, tokens, total, max_pages, page_size, pages
    return kernel, config, (*steps, indices[1][2][0], *sizes, heads, k_dim, v_dim, row_shift, blocks_per_row)


def _check_indices(batch: int | None, indices: tuple[_Operand, ...]) -> tuple[int, int]:
    """Check lengths, block table and starts; return batch and max_pages."""
    lengths, table = (shape for _, shape, _, _ in indices[:2])
    if batch is None:
        batch = lengths[0] if lengths else 0
    max_pages = table[-1] if table else 0
    wanted = {"lengths": (batch,), "block_table": (batch, max_pages), "starts": (batch + 1,)}
    for (name, needed), (kind, shape, strides, _) in zip(wanted.items(), indices, strict=False):  # without starts: two
        if kind != INT32 or shape != needed or (shape[-1] > 1 and strides[-1] != 1):
            raise ArgumentError(
                f"{name} is {kind.name} {shape} with strides {strides}; "
                f"it takes int32 {needed}, the last dimension contiguous"
            )
    return batch, max_pages
