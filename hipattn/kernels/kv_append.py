"""Append keys and values to their caches. Kernel: ``kernels_src/kv_append.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rows import BLOCK, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["KvAppendParams", "defaults", "launch", "specialise"]

_POINTERS = ("k", "v", "k_cache", "v_cache")
_STRIDES = [f"{name}_{axis}" for name in _POINTERS for axis in ("batch", "token", "head")]


class KvAppendParams(Arguments):
    """What ``kv_append`` takes."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        ("position", ctypes.c_int64),
        ("batch", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("heads", ctypes.c_uint32),
        ("k_dim", ctypes.c_uint32),
        ("v_dim", ctypes.c_uint32),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
    )


def specialise(dtype: str, vector: int) -> Specialisation:
    """Return the kernel for a dtype and `vector` elements an access."""
    return Specialisation(
        "kv_append", "kv_append", KvAppendParams, {"BLOCK": BLOCK, "VECTOR": vector}, {"scalar": dtype}
    )


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned rows."""
    for dtype in SCALARS:
        yield specialise(dtype, widest(dtype))


def launch(
    k: DeviceTensor,
    v: DeviceTensor,
    k_cache: DeviceTensor,
    v_cache: DeviceTensor,
    position: int,
    *,
    stream: Stream,
) -> None:
    """Copy new keys and values to tokens `position` and after of their caches, in one launch.

    Parameters
    ----------
    k, v : [batch, tokens, heads_kv, head_dim or value_dim]
        Any strides with a contiguous last dimension.
    k_cache, v_cache : [batch, capacity, heads_kv, head_dim or value_dim]
        The same dtype as `k` and `v`; any strides with a contiguous last dimension.
    position
        The first token that is written, at most capacity - tokens.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes, dtypes or layouts do not fit, there is no room, or a tensor is on another device.
    HipError
        The launch fails.
    """
    plan = _plan(stream.device, operands(stream, {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache}))
    if not 0 <= position <= k_cache.shape[1] - k.shape[1]:
        raise ArgumentError(
            f"position is {position}; a cache of {k_cache.shape[1]} takes {k.shape[1]} tokens at "
            f"0 to {k_cache.shape[1] - k.shape[1]}"
        )
    if plan is None:
        return
    kernel, config, strides, sizes = plan
    pointers = addresses(stream, k, v, k_cache, v_cache)
    kernel.launch(stream, config, KvAppendParams(*pointers, *strides, position, *sizes))


@lru_cache(maxsize=4096)
def _plan(
    device: Device, tensors: tuple[Operand, ...]
) -> tuple[Kernel, LaunchConfig, tuple[int, ...], tuple[int, ...]] | None:
    dtype = as_dtype(tensors[0][1], "k's dtype")
    for name, kind, shape, strides, _ in tensors:
        if len(shape) != 4:
            raise ArgumentError(f"{name} has shape {shape}; it takes [batch, tokens, heads_kv, dim]")
        if shape[3] > 1 and strides[3] != 1:
            raise ArgumentError(f"{name} has strides {strides}; its last dimension must be contiguous")
        if kind != dtype:
            raise ArgumentError(f"{name} is {kind.name}; k is {dtype.name}, and all take the same")
    k, v, k_cache, v_cache = (shape for _, _, shape, _, _ in tensors)
    batch, tokens, heads, k_dim = k
    v_dim = v[3]
    if v[:3] != k[:3]:
        raise ArgumentError(f"v has shape {v}; k has {k}, and they differ at most in the last dimension")
    for name, shape, dim in (("k_cache", k_cache, k_dim), ("v_cache", v_cache, v_dim)):
        if shape != (batch, k_cache[1], heads, dim):
            raise ArgumentError(f"{name} has shape {shape}; it takes {(batch, k_cache[1], heads, dim)}")
    rows, columns = 2 * batch * tokens * heads, max(k_dim, v_dim)
    if not rows * columns:
        return None
    if rows >= 2**31:
        raise ArgumentError(f"k has {batch} * {tokens} * {heads} rows; one append takes fewer than 2^30")
    vector = vector_width(*((address, dtype.itemsize, strides[:3]) for *_, strides, address in tensors))
    row_shift, blocks_per_row, config = share(rows, columns, vector)
    kernel = load(specialise(dtype.name, vector), device)
    steps = tuple(stride for *_, strides, _ in tensors for stride in strides[:3])
    return kernel, config, steps, (batch, tokens, heads, k_dim, v_dim, row_shift, blocks_per_row)
