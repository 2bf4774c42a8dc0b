"""Tensors as rows, and how a grid's threads share them: the host's side of ``kernels_src/include/rows.h``."""

from __future__ import annotations

import math
from typing import NamedTuple

from hipattn.arguments import instance
from hipattn.errors import ArgumentError
from hipattn.runtime.module import LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = [
    "ACCESS_BYTES",
    "BLOCK",
    "MAX_BLOCKS",
    "Rows",
    "Share",
    "as_rows",
    "check_device",
    "joined",
    "power_of_two",
    "share",
    "vector_width",
    "widest",
]

BLOCK = 256
MAX_BLOCKS = 2**16  # kernels loop beyond; far below HIP's limit of 2^32 threads in a grid
ACCESS_BYTES = 16  # the widest access of a thread


class Rows(NamedTuple):
    """An array seen as rows of contiguous elements, `stride` elements from one row's start to the next's."""

    rows: int
    columns: int
    stride: int  # 0 for a single row


class Share(NamedTuple):
    """The arguments and the launch configuration of a kernel over ``rows.h``."""

    row_shift: int
    blocks_per_row: int
    config: LaunchConfig


def as_rows(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Rows:
    """Fold all dimensions but the last into rows.

    Raises
    ------
    ArgumentError
        The last dimension is not contiguous, or the rows overlap or are unevenly spaced.
    """
    if not shape:
        return Rows(1, 1, 0)
    columns = shape[-1]
    if 0 in shape:
        return Rows(math.prod(shape[:-1]), columns, 0)
    if columns > 1 and strides[-1] != 1:
        raise ArgumentError(f"{name} has strides {strides}; its last dimension must be contiguous")
    rows, stride = 1, 0
    for size, step in zip(reversed(shape[:-1]), reversed(strides[:-1]), strict=True):
        if size == 1:
            continue
        if rows == 1:
            stride = step
        if stride < columns or step != rows * stride:
            raise ArgumentError(
                f"{name} has shape {shape} and strides {strides}; its rows must be evenly spaced, not overlap"
            )
        rows *= size
    return Rows(rows, columns, stride)


def joined(*arrays: Rows) -> tuple[Rows, ...]:
    """See arrays of one shape as one row each, if all are contiguous; otherwise return them as they are."""
    if all(rows == 1 or stride == columns for rows, columns, stride in arrays):
        return tuple(Rows(1, rows * columns, 0) for rows, columns, _ in arrays)
    return arrays


def vector_width(*operands: tuple[int, int, tuple[int, ...]]) -> int:
    """Return how many elements a thread can move at once: 1, 2, 4 or 8.

    Parameters
    ----------
    *operands : (address, itemsize, strides)
        Address of the first element modulo `ACCESS_BYTES`, bytes of one, strides between rows in elements.
    """
    width = ACCESS_BYTES // max(itemsize for _, itemsize, _ in operands)
    for address, itemsize, strides in operands:
        for distance in (address, *(stride * itemsize for stride in strides)):
            while distance % (width * itemsize):
                width //= 2
    return width


def widest(*dtypes: str) -> int:
    """Return `vector_width` for aligned rows of these dtypes."""
    return vector_width(*((0, as_dtype(dtype).itemsize, ()) for dtype in dtypes))


def share(rows: int, columns: int, vector: int) -> Share:
    """Share a [rows, columns] array, neither 0, among threads that take `vector` elements at a time."""
    row_threads = min(BLOCK, power_of_two(-(-columns // vector)))
    blocks_per_row = min(MAX_BLOCKS, -(-columns // (row_threads * vector)))
    groups = min(MAX_BLOCKS // blocks_per_row, -(-rows // (BLOCK // row_threads)))
    return Share(row_threads.bit_length() - 1, blocks_per_row, LaunchConfig(blocks_per_row * groups, BLOCK))


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()


def check_device(stream: Stream, **tensors: DeviceTensor) -> None:
    """Check that these are tensors on the stream's device.

    Raises
    ------
    ArgumentError
        One is not; the message names it.
    """
    device = stream.device
    for name, tensor in tensors.items():
        if type(tensor) is DeviceTensor and tensor.buffer.device is device:
            continue  # in all calls but a wrong one
        if instance(name, tensor, DeviceTensor).device is not stream.device:
            raise ArgumentError(f"{name} is on device {tensor.device.index}; the stream is on {stream.device.index}")
