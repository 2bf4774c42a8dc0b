"""Append keys and values to the pages of their sequences. Kernel: ``kernels_src/paged_append.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.float8 import E4M3_FNUZ, e4m3
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rows import BLOCK, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, INT32, UINT8, DeviceTensor, as_dtype

__all__ = ["PagedAppendParams", "defaults", "launch", "specialise"]

_NEW, _POOLS = ("k", "v"), ("k_pool", "v_pool")
_SCALES = ("k_scales", "v_scales")
_POINTERS = (*_NEW, *_POOLS, "lengths", "table", *_SCALES, "starts")
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


def specialise(
    dtype: str, vector: int, *, packed: bool = False, fp8: bool = False, fnuz: bool = False
) -> Specialisation:
    """Return the kernel for a dtype, `vector` elements an access, packed sequences, pools of e4m3 and which one."""
    constants = {"BLOCK": BLOCK, "VECTOR": vector, "PACKED": packed, "FP8": fp8, "FNUZ": fnuz}
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
    scales: tuple[DeviceTensor, DeviceTensor] | None = None,
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
        The same dtype as `k` and `v`; with `scales` uint8, the bits of the device's e4m3 (`float8.e4m3`). Any strides
        with a contiguous last dimension.
    lengths : [batch]
        int32, contiguous: the tokens that each sequence holds, the new ones among them, which are the last.
    block_table : [batch, max_pages]
        int32, contiguous rows: the pages of each sequence.
    starts : [batch + 1]
        int32, contiguous: the new tokens of sequence b are starts[b] to starts[b + 1] - 1 of `k` and `v`.
    scales : two of [heads_kv]
        float32, contiguous, positive, for keys and values: what is stored is e4m3 of an element divided by its head's
        scale, rounded to nearest even; what is too large becomes the largest finite value.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes, dtypes or layouts do not fit, or a tensor is on another device.
    HipError
        The launch fails.
    """
    k_scales, v_scales = scales or (None, None)
    needed = {"k": k, "v": v, "k_pool": k_pool, "v_pool": v_pool, "lengths": lengths, "block_table": block_table}
    optional = {"k_scales": k_scales, "v_scales": v_scales, "starts": starts}
    plan = _plan(stream.device, operands(stream, needed, optional))
    if plan is None:
        return
    kernel, config, numbers = plan
    pointers = addresses(stream, *needed.values(), *optional.values())
    kernel.launch(stream, config, PagedAppendParams(*pointers, *numbers))


class _Operand(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    address: int  # modulo ACCESS_BYTES


@lru_cache(maxsize=4096)
def _plan(device: Device, tensors: tuple[Operand, ...]) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    named = {facts[0]: _Operand(*facts[1:]) for facts in tensors}
    packed, fp8 = "starts" in named, "k_scales" in named
    _check(named)
    k, v, k_pool, _ = rows = [named[name] for name in (*_NEW, *_POOLS)]
    (heads, k_dim), v_dim = k.shape[-2:], v.shape[-1]
    batch, max_pages = named["block_table"].shape
    pages, page_size = k_pool.shape[:2]
    total, tokens = (k.shape[0], 0) if packed else (batch * k.shape[1], k.shape[1])
    if not total * heads * max(k_dim, v_dim) * batch:
        return None
    if 2 * total * heads >= 2**31:
        raise ArgumentError(f"k has {total} * {heads} rows; one append takes fewer than 2^30")
    vector = vector_width(*((x.address, x.dtype.itemsize, x.strides[:-1]) for x in rows))
    row_shift, blocks_per_row, config = share(2 * total * heads, max(k_dim, v_dim), vector)
    fnuz = fp8 and e4m3(device.arch) == E4M3_FNUZ
    kernel = load(specialise(k.dtype.name, vector, packed=packed, fp8=fp8, fnuz=fnuz), device)
    steps = (step for x in rows for step in (0, *x.strides)[-4:-1])  # packed: no batch to step over
    table_row = named["block_table"].strides[0]
    sizes = batch, tokens, total, max_pages, page_size, pages, heads, k_dim, v_dim
    return kernel, config, (*steps, table_row, *sizes, row_shift, blocks_per_row)


def _check(named: Mapping[str, _Operand]) -> None:
    packed, fp8 = "starts" in named, "k_scales" in named
    dtype = as_dtype(named["k"].dtype, "k's dtype")
    for name in _NEW:
        _check_rows(name, named[name], ("total",) if packed else ("batch", "tokens"), dtype, "as k is")
    for name in _POOLS:
        kind, why = (UINT8, "with scales") if fp8 else (dtype, "as k is")
        _check_rows(name, named[name], ("pages", "page_size"), kind, why)
    k, v = (named[name].shape for name in _NEW)
    pages, page_size = named["k_pool"].shape[:2]
    if v[:-1] != k[:-1]:
        raise ArgumentError(f"v has shape {v}; k has {k}, and they differ at most in the last dimension")
    for name, shape in zip(_POOLS, (k, v), strict=True):
        pool, wanted = named[name].shape, (pages, page_size, *shape[-2:])
        if pool != wanted:
            raise ArgumentError(f"{name} has shape {pool}; it takes {wanted}")
    if not page_size or pages * page_size >= 2**31:
        raise ArgumentError(
            f"k_pool has {pages} pages of {page_size} tokens; it takes 1 or more, fewer than 2^31 in all"
        )
    batch = (named["lengths"].shape or (0,))[0] if packed else k[0]
    max_pages = (named["block_table"].shape or (0,))[-1]
    indices = {"lengths": (batch,), "block_table": (batch, max_pages), "starts": (batch + 1,)}
    wants = {name: (INT32, shape) for name, shape in indices.items()} | dict.fromkeys(_SCALES, (FLOAT32, k[-2:-1]))
    for name, want in wants.items():
        if name in named:
            _check_beside(name, named[name], *want)


def _check_rows(name: str, x: _Operand, axes: tuple[str, ...], dtype: np.dtype[Any], why: str) -> None:
    if len(x.shape) != len(axes) + 2:
        raise ArgumentError(f"{name} has shape {x.shape}; it takes [{', '.join(axes)}, heads_kv, dim]")
    if x.shape[-1] > 1 and x.strides[-1] != 1:
        raise ArgumentError(f"{name} has strides {x.strides}; its last dimension must be contiguous")
    if x.dtype != dtype:
        raise ArgumentError(f"{name} is {x.dtype.name}; it takes {dtype.name}, {why}")


def _check_beside(name: str, x: _Operand, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if x.dtype != dtype or x.shape != shape or (x.shape[-1] > 1 and x.strides[-1] != 1):
        raise ArgumentError(
            f"{name} is {x.dtype.name} {x.shape} with strides {x.strides}; "
            f"it takes {dtype.name} {shape}, the last dimension contiguous"
        )
