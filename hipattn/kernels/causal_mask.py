"""Hide the keys that come after each query. Kernel: ``kernels_src/causal_mask.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import operand
from hipattn.kernels.rows import BLOCK, as_rows, share, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["CausalMaskParams", "defaults", "launch", "specialise"]

_WRITES = 4  # vectors that a thread writes at most, if blocks are large enough
_LINE_THREADS = 8  # that take a row at least: they write a cache line at a time


class CausalMaskParams(Arguments):
    """What ``causal_mask_kernel`` takes."""

    _fields_ = (
        ("scores", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("seq_q", ctypes.c_int64),
        ("seq_k", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("row_shift", ctypes.c_uint32),
        ("end_blocks", ctypes.c_uint32),
    )


def specialise(dtype: str) -> Specialisation:
    """Return the kernel for a dtype."""
    return Specialisation(
        "causal_mask",
        "causal_mask_kernel",
        CausalMaskParams,
        {"BLOCK": BLOCK, "VECTOR": widest(dtype)},
        {"scalar": dtype},
    )


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return all kernels."""
    for dtype in SCALARS:
        yield specialise(dtype)


def launch(scores: DeviceTensor, *, stream: Stream) -> None:
    """Write -inf to ``scores[..., i, j]`` where ``j > i + seq_k - seq_q``.

    All other elements of `scores` stay as they are, bit for bit. Some of them are read and written back, so nothing
    else may write to `scores` meanwhile; what lies between its rows is not touched.

    Parameters
    ----------
    scores : [..., seq_q, seq_k]
        float32, float16 or bfloat16, rows at an even distance.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        The shape or layout is not accepted, or `scores` is on another device than `stream`.
    HipError
        The launch fails.
    """
    plan = _plan(stream.device, *operand(stream, "scores", scores)[:-1])  # any address will do
    if plan is None:
        return
    kernel, config, sizes = plan
    scores.buffer.used_on(stream)
    kernel.launch(stream, config, CausalMaskParams(scores.pointer, *sizes))


@lru_cache(maxsize=4096)
def _plan(
    device: Device, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    as_dtype(dtype, f"{name}'s dtype")
    if len(shape) < 2:
        raise ArgumentError(f"{name} has shape {shape}; it takes [..., seq_q, seq_k]")
    rows, seq_k, stride = as_rows(name, shape, strides)
    seq_q = shape[-2]
    # A single query is the last one: it sees every key.
    if not rows * seq_k or seq_q == 1:
        return None
    vector = widest(dtype.name)
    hidden = min(seq_k, seq_q - 1)  # at most, of a row
    columns = min(BLOCK * vector, max(_LINE_THREADS * vector, hidden // _WRITES))  # that are written at a time
    row_shift, _, config = share(rows, columns, vector)
    end_blocks = min(config.grid[0], -(-rows // BLOCK))
    config = LaunchConfig(end_blocks + config.grid[0], config.block)
    return load(specialise(dtype.name), device), config, (rows, seq_q, seq_k, stride, row_shift, end_blocks)
