"""One result of what decoding gave for parts of the keys. Kernel: ``kernels_src/flash_combine.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.rows import check_device, power_of_two
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["MAX_SPLITS", "FlashCombineParams", "defaults", "launch", "specialise"]

MAX_SPLITS = 256  # parts of a row: a weight of each is held in local memory
_BLOCK = 256


class FlashCombineParams(Arguments):
    """What ``flash_combine`` takes. Strides in elements."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("parts", "part_lse", "out", "lse")),
        *((f"out_{axis}", ctypes.c_int64) for axis in ("batch", "row", "head")),
        *((name, ctypes.c_int32) for name in ("heads", "seq_q", "splits")),
    )


def specialise(dtype: str, value_dim: int, *, lse: bool) -> Specialisation:
    """Return the kernel for results of `dtype` and this size, with or without their LSE."""
    vector = 4 if value_dim % 4 == 0 else 1
    lanes = min(_BLOCK, power_of_two(-(-value_dim // vector)))
    constants = {"VALUE_DIM": value_dim, "BLOCK": _BLOCK, "LANES": lanes, "VECTOR": vector}
    constants |= {"MAX_SPLITS": MAX_SPLITS, "LSE": lse}
    return Specialisation("flash_combine", "flash_combine", FlashCombineParams, constants, {"scalar": dtype})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for the most common head sizes."""
    for dtype in SCALARS:
        for value_dim in (64, 128):
            yield specialise(dtype, value_dim, lse=False)


def launch(
    parts: DeviceTensor, part_lse: DeviceTensor, out: DeviceTensor, *, lse: DeviceTensor | None = None, stream: Stream
) -> None:
    """Weigh each row's parts by their totals, and add them up.

    Parameters
    ----------
    parts
        [batch, heads, seq_q, splits, value_dim] of float32, contiguous: what each part of the keys gives.
    part_lse
        [batch, heads, seq_q, splits] of float32, contiguous: the logarithm to base 2 of each part's total; -inf for a
        part that saw no key, of which nothing else is read.
    out
        [batch, seq_q, heads, value_dim], any strides with a contiguous last dimension.
    lse
        [batch, heads, seq_q] of float32, contiguous: where the natural log-sum-exp goes.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        A tensor is on another device than the stream, a shape does not fit, or there are too many parts.
    HipError
        The launch fails.
    """
    check_device(stream, parts=parts, part_lse=part_lse, out=out)
    plan = _plan(stream.device, parts.shape, part_lse.shape, out.shape, out.strides, out.dtype, lse is not None)
    if plan is None:
        return
    kernel, config, numbers = plan
    for tensor in (parts, part_lse, out):
        tensor.buffer.used_on(stream)
    if lse is not None:
        check_device(stream, lse=lse)
        lse.buffer.used_on(stream)
    pointers = parts.pointer, part_lse.pointer, out.pointer, 0 if lse is None else lse.pointer
    kernel.launch(stream, config, FlashCombineParams(*pointers, *numbers))


@lru_cache(maxsize=4096)
def _plan(
    device: Device,
    parts: tuple[int, ...],
    part_lse: tuple[int, ...],
    out: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    lse: bool,
) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    batch, heads, seq_q, splits, value_dim = parts
    if part_lse != parts[:4] or out != (batch, seq_q, heads, value_dim):
        raise ArgumentError(f"parts have shape {parts}, part_lse {part_lse} and out {out}, which do not fit together")
    if splits > MAX_SPLITS:
        raise ArgumentError(f"parts have shape {parts}; a row has at most {MAX_SPLITS} parts")
    rows = batch * heads * seq_q
    if not rows * value_dim:
        return None
    kernel = load(specialise(dtype.name, value_dim, lse=lse), device)
    return kernel, LaunchConfig(rows, _BLOCK), (*strides[:3], heads, seq_q, splits)
