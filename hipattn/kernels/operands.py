"""The tensors of a launch: what its plan depends on, and their addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hipattn.kernels.rows import ACCESS_BYTES, check_device
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["Operand", "addresses", "operand", "operands"]

# Name, dtype, shape, strides, and address modulo `ACCESS_BYTES`. A plain tuple: a named one takes three times as long
# to make, in each call.
Operand = tuple[str, np.dtype[Any], tuple[int, ...], tuple[int, ...], int]


def operand(stream: Stream, name: str, tensor: DeviceTensor) -> Operand:
    """Return what a plan is made from.

    Raises
    ------
    ArgumentError
        It is no tensor on the stream's device; the message names it.
    """
    if type(tensor) is not DeviceTensor or tensor.buffer.device is not stream.device:
        check_device(stream, **{name: tensor})
    return name, tensor.dtype, tensor.shape, tensor.strides, tensor.pointer % ACCESS_BYTES


def operands(
    stream: Stream, tensors: Mapping[str, DeviceTensor], optional: Mapping[str, DeviceTensor | None] | None = None
) -> tuple[Operand, ...]:
    """Return what a plan is made from, of `tensors` and of those in `optional` that are not None.

    Raises
    ------
    ArgumentError
        One is no tensor on the stream's device; the message names it.
    """
    found = []
    for name, tensor in tensors.items():  # Python 3.11 takes longer for a comprehension
        found.append(operand(stream, name, tensor))
    if optional:
        for name, given in optional.items():
            if given is not None:
                found.append(operand(stream, name, given))
    return tuple(found)


def addresses(stream: Stream, *tensors: DeviceTensor | None) -> list[int | None]:
    """Return the addresses of tensors that a launch on `stream` is about to use, and note that it does."""
    found: list[int | None] = []
    for tensor in tensors:
        if tensor is None:
            found.append(None)
        else:
            tensor.buffer.used_on(stream)
            found.append(tensor.pointer)
    return found
