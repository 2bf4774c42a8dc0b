"""Hide the keys that come after each query. Kernel: ``kernels_src/causal_mask.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, operand
from hipattn.kernels.rows import BLOCK, as_rows, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["CausalMaskParams", "defaults", "launch", "specialise"]


_BLOCKS = 16  # of a compute unit


class CausalMaskParams(Arguments):
    """What ``causal_mask_kernel`` takes."""

    _fields_ = (
        ("scores", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("seq_q", ctypes.c_int64),
        ("seq_k", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
    )


def specialise(dtype: str, vector: int) -> Specialisation:
    """Return the kernel for a dtype and `vector` elements an access."""
    return Specialisation(
        "causal_mask",
        "causal_mask_kernel",
        CausalMaskParams,
        {"BLOCK": BLOCK, "VECTOR": vector},
        {"scalar": dtype},
    )


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned rows."""
    for dtype in SCALARS:
        yield specialise(dtype, widest(dtype))


def launch(scores: DeviceTensor, *, stream: Stream) -> None:
    """Write -inf to ``scores[..., i, j]`` where ``j > i + seq_k - seq_q``; touch nothing else.

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
    plan = _plan(stream.device, operand(stream, "scores", scores))
    if plan is None:
        return
    kernel, config, sizes = plan
    scores.buffer.used_on(stream)
    kernel.launch(stream, config, CausalMaskParams(scores.pointer, *sizes))


@lru_cache(maxsize=4096)
def _plan(device: Device, scores: Operand) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    name, dtype, shape, strides, address = scores
    as_dtype(dtype, f"{name}'s dtype")
    if len(shape) < 2:
        raise ArgumentError(f"{name} has shape {shape}; it takes [..., seq_q, seq_k]")
    rows, seq_k, stride = as_rows(name, shape, strides)
    seq_q = shape[-2]
    # A single query is the last one: it sees every key.
    if not rows * seq_k or seq_q == 1:
        return None
    vector = vector_width((address, dtype.itemsize, (stride,)))
    row_shift, blocks_per_row, config = share(rows, seq_k, vector)
    # Each block takes several rows: to start one for each takes longer than to write it.
    groups = -(-_BLOCKS * device.compute_units // blocks_per_row)
    config = LaunchConfig(min(config.grid[0], groups * blocks_per_row), config.block)
    kernel = load(specialise(dtype.name, vector), device)
    return kernel, config, (rows, seq_q, seq_k, stride, row_shift, blocks_per_row)
