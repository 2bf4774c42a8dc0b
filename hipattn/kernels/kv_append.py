"""Append keys and values to their caches. Kernel: ``kernels_src/kv_append.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.rows import check_device, share, vector_width
from hipattn.runtime.module import Arguments
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["KvAppendParams", "launch", "specialise"]

_POINTERS = ("k", "v", "k_cache", "v_cache")
_STRIDES = [f"{name}_{axis}" for name in _POINTERS for axis in ("batch", "token", "head")]


class KvAppendParams(Arguments):
    """What ``kv_append`` takes."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        ("position", ctypes.c_int64),
        ("batch", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("heads", ctypes.c_uint32),
        ("k_dim", ctypes.c_uint32),
        ("v_dim", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
    ]


def specialise(dtype: str, constants: Mapping[str, int]) -> Specialisation:
    """Return the kernel for a dtype and the constants of a `hipattn.kernels.rows.Share`."""
    return Specialisation("kv_append", "kv_append", KvAppendParams, constants, {"scalar": dtype})


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
        Shapes, dtypes or layouts do not fit, there is no room, or a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    tensors = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache}
    check_device(stream, **tensors)
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ArgumentError(f"{name} has shape {tensor.shape}; it takes [batch, tokens, heads_kv, dim]")
        if tensor.shape[3] > 1 and tensor.strides[3] != 1:
            raise ArgumentError(f"{name} has strides {tensor.strides}; its last dimension must be contiguous")
        if tensor.dtype != k.dtype:
            raise ArgumentError(f"{name} is {tensor.dtype.name}; k is {k.dtype.name}, and all take the same")
    batch, tokens, heads, k_dim = k.shape
    v_dim = v.shape[3]
    if v.shape[:3] != k.shape[:3]:
        raise ArgumentError(
            f"v has shape {v.shape}; k has {k.shape}, and they differ at most in the last dimension"
        )
    for name, cache, dim in (("k_cache", k_cache, k_dim), ("v_cache", v_cache, v_dim)):
        capacity = cache.shape[1]
        if cache.shape != (batch, capacity, heads, dim):
            raise ArgumentError(f"{name} has shape {cache.shape}; it takes {(batch, 'capacity', heads, dim)}")
        if not 0 <= position <= capacity - tokens:
            raise ArgumentError(
                f"position is {position}; {name} takes {tokens} tokens at 0 to {capacity - tokens}"
            )
    rows, columns = 2 * batch * tokens * heads, max(k_dim, v_dim)
    if not rows * columns:
        return
    if rows >= 2**31:
        raise ArgumentError(f"k has {batch} x {tokens} x {heads} rows; one append takes fewer than 2^30")
    vector = vector_width(*((t.pointer, t.dtype.itemsize, t.strides[:3]) for t in tensors.values()))
    constants, blocks_per_row, config = share(rows, columns, vector)
    kernel = load(specialise(k.dtype.name, constants), stream.device)
    arguments = KvAppendParams(
        *(tensor.pointer for tensor in tensors.values()),
        *(stride for tensor in tensors.values() for stride in tensor.strides[:3]),
        *(position, batch, tokens, heads, k_dim, v_dim, blocks_per_row),
    )
    kernel.launch(stream, config, arguments)
    for tensor in tensors.values():
        tensor.buffer.used_on(stream)
