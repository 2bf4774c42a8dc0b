"""Tensors as rows, and how the threads of a grid share them: the host's side of ``kernels_src/include/rows.h``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from hipattn.errors import ArgumentError
from hipattn.runtime.module import LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = [
    "BLOCK",
    "MAX_BLOCKS",
    "Rows",
    "Share",
    "as_rows",
    "check_device",
    "power_of_two",
    "share",
    "vector_width",
]

BLOCK = 256
MAX_BLOCKS = 2**16  # kernels loop beyond; far below HIP's limit of 2^32 threads in a grid
VECTOR_BYTES = 16  # the widest access of a thread


class Rows(NamedTuple):
    """An array seen as rows of contiguous elements, `stride` elements from one row's start to the next's."""

    rows: int
    columns: int
    stride: int


class Share(NamedTuple):
    """The constants, the argument and the launch configuration of a kernel over ``rows.h``."""

    constants: Mapping[str, int]
    blocks_per_row: int
    config: LaunchConfig


@lru_cache(maxsize=4096)
def as_rows(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Rows:
    """Fold all dimensions but the last into rows.

    Raises
    ------
    ArgumentError
        The last dimension is not contiguous, or the rows are not evenly spaced; the message says `name`.
    """
    if not shape:
        return Rows(1, 1, 1)
    columns = shape[-1]
    if 0 in shape:
        return Rows(math.prod(shape[:-1]), columns, columns)
    if columns > 1 and strides[-1] != 1:
        raise ArgumentError(f"{name} has strides {strides}; its last dimension must be contiguous")
    rows, stride = 1, columns
    for size, step in zip(reversed(shape[:-1]), reversed(strides[:-1]), strict=True):
        if size == 1:
            continue
        if rows == 1:
            stride = step
        elif step != rows * stride:
            raise ArgumentError(
                f"{name} has shape {shape} and strides {strides}; its rows must be evenly spaced"
            )
        rows *= size
    return Rows(rows, columns, stride)


def vector_width(*operands: tuple[int, int, tuple[int, ...]]) -> int:
    """Return how many elements a thread can move at once: 1, 2, 4 or 8.

    Parameters
    ----------
    *operands : (pointer, itemsize, strides)
        Address of the first element, bytes of one, and the strides in elements between rows.
    """
    width = VECTOR_BYTES // min(itemsize for _, itemsize, _ in operands)
    for pointer, itemsize, strides in operands:
        bits = pointer
        for stride in strides:
            bits |= stride * itemsize
        # The lowest bit set is what all addresses of rows are multiples of; 0 is a multiple of everything.
        while width > 1 and bits % min(width * itemsize, VECTOR_BYTES):
            width //= 2
    return width


@lru_cache(maxsize=4096)
def share(rows: int, columns: int, vector: int) -> Share:
    """Share a [rows, columns] array among threads that take `vector` elements at a time; neither size is 0."""
    row_threads = min(BLOCK, power_of_two(-(-columns // vector)))
    blocks_per_row = min(MAX_BLOCKS, -(-columns // (row_threads * vector)))
    groups = min(MAX_BLOCKS // blocks_per_row, -(-rows // (BLOCK // row_threads)))
    constants = {"BLOCK": BLOCK, "ROW_THREADS": row_threads, "VECTOR": vector}
    return Share(constants, blocks_per_row, LaunchConfig(blocks_per_row * groups, BLOCK))


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()


def check_device(stream: Stream, **tensors: DeviceTensor) -> None:
    """Check that all tensors are on the stream's device.

    Raises
    ------
    ArgumentError
        One is not; the message names it.
    """
    for name, tensor in tensors.items():
        if tensor.device is not stream.device:
            raise ArgumentError(
                f"{name} is on device {tensor.device.index}; the stream is on {stream.device.index}"
            )
