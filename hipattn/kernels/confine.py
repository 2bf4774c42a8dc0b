"""Keep NaN and infinities of v in the rows that see them. Kernel: ``kernels_src/confine.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.kernels.operands import addresses
from hipattn.kernels.rows import BLOCK, as_rows, check_device
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, Launch, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["ConfineParams", "defaults", "launch", "prepare", "specialise"]

_COLUMNS = 32  # of v that a block looks at


class ConfineParams(Arguments):
    """What ``confine_nonfinite`` takes."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("weights_row", ctypes.c_int64),
        ("v_batch", ctypes.c_int64),
        ("v_head", ctypes.c_int64),
        ("v_row", ctypes.c_int64),
        ("out_batch", ctypes.c_int64),
        ("out_head", ctypes.c_int64),
        ("out_row", ctypes.c_int64),
        ("seq_q", ctypes.c_int64),
        ("seq_k", ctypes.c_int64),
        ("heads", ctypes.c_int32),
        ("heads_per_kv", ctypes.c_int32),
        ("columns", ctypes.c_int32),
    )


def specialise(dtype: str) -> Specialisation:
    """Return the kernel for tensors of `dtype`."""
    constants = {"BLOCK": BLOCK, "COLUMNS": _COLUMNS}
    return Specialisation("confine", "confine_nonfinite", ConfineParams, constants, {"scalar": dtype})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for each dtype."""
    for dtype in SCALARS:
        yield specialise(dtype)


def launch(weights: DeviceTensor, v: DeviceTensor, out: DeviceTensor, *, stream: Stream) -> None:
    """Compute the columns of `out` again in which `v` has a NaN or infinity, from the keys that each row sees.

    Parameters
    ----------
    weights
        [batch, heads_q, seq_q, seq_k], rows contiguous and evenly spaced: causal attention weights, aligned
        bottom-right.
    v
        [batch, heads_kv, seq_k, value_dim], contiguous last dimension.
    out
        [batch, heads_q, seq_q, value_dim], contiguous last dimension: the product of the two.
    stream
        Where the work goes.

    Raises
    ------
    ArgumentError
        The layout of `weights` is not accepted, or a tensor is on another device than the stream.
    """
    ready = prepare(weights, v, out, stream=stream)
    if ready is not None:
        ready.run(stream)


def prepare(
    weights: DeviceTensor, v: DeviceTensor, out: DeviceTensor, *, stream: Stream
) -> Launch[ConfineParams] | None:
    """Return what `launch` launches, to be run on `stream` as often as is wanted. None: there is nothing to do."""
    check_device(stream, weights=weights, v=v, out=out)
    plan = _plan(stream.device, v.dtype, weights.shape, weights.strides, v.shape)
    if plan is None:
        return None
    kernel, config, (row, *sizes) = plan
    pointers = addresses(stream, weights, v, out)
    return Launch(kernel, config, ConfineParams(*pointers, row, *v.strides[:3], *out.strides[:3], *sizes))


@lru_cache(maxsize=4096)
def _plan(
    device: Device,
    dtype: np.dtype[Any],
    weights: tuple[int, ...],
    strides: tuple[int, ...],
    v: tuple[int, ...],
) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    as_dtype(dtype, "v's dtype")
    row = as_rows("weights", weights, strides).stride
    if 0 in weights or 0 in v:
        return None
    batch, heads, seq_q, seq_k = weights
    config = LaunchConfig(batch * heads * -(-v[3] // _COLUMNS), BLOCK)
    return load(specialise(dtype.name), device), config, (row, seq_q, seq_k, heads, heads // v[1], v[3])
