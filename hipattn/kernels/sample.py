"""The next token from logits: the largest, or one drawn. Kernel: ``kernels_src/sample.hip``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

from hipattn.arguments import integer, number
from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rows import BLOCK, MAX_BLOCKS, as_rows, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import INT32, DeviceTensor, as_dtype

__all__ = ["SampleParams", "check_numbers", "defaults", "launch", "specialise"]

MAX_COLUMNS = 2**22  # weights of 2^40 each add up in 64 bits
LONG_ROW = 4096  # elements from which on a row has a block of the most threads
LONG_BLOCK = 1024
MIN_TEMPERATURE = 1e-30


class SampleParams(Arguments):
    """What ``sample`` takes."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("sequences", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("top_k", ctypes.c_uint32),
        ("top_p", ctypes.c_uint32),
        ("scale", ctypes.c_float),
    )


def specialise(dtype: str, vector: int, *, long: bool, draw: bool) -> Specialisation:
    """Return the kernel for a dtype, `vector` elements an access, long rows or short ones, drawing or not."""
    constants = {"BLOCK": LONG_BLOCK if long else BLOCK, "VECTOR": vector, "DRAW": draw}
    return Specialisation("sample", "sample", SampleParams, constants, {"scalar": dtype})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned rows."""
    for dtype, long, draw in product(SCALARS, (False, True), (False, True)):
        yield specialise(dtype, widest(dtype), long=long, draw=draw)


def launch(
    logits: DeviceTensor,
    out: DeviceTensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    step: int | DeviceTensor = 0,
    sequences: DeviceTensor | None = None,
    stream: Stream,
) -> None:
    """Choose a column of each row: with `temperature` 0 the largest logit, otherwise one drawn by probability.

    The probabilities are softmax(logits / temperature) of what `top_k` and then `top_p` keep, to 2^-40 of the
    largest. A draw depends on the row, `seed`, the row's step and its sequence, and on nothing else: not on the
    batch, nor on the GPU but for the last digit of exp. A row gets -1 if it holds a NaN, or nothing but -inf.

    Parameters
    ----------
    logits : [batch, columns]
        float32, float16 or bfloat16, contiguous rows at any distance; at most 4194303 columns.
    out : [batch] of int32, contiguous
        The columns.
    temperature
        0, or 1e-30 and more.
    top_k
        How many of the largest logits are kept; those equal to the last are kept too. 0: all. 1 is `temperature` 0.
    top_p
        Above 0, at most 1: of those, the fewest largest whose probabilities make up this are kept, and what equals the
        last.
    seed
        0 or more, below 2^63.
    step : int, or [batch] of int32, contiguous
        How many tokens a sequence has drawn already.
    sequences : [batch] of int32, contiguous
        Which sequence a row is: it draws the same wherever in a batch it lies. Default: the row's index.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        A number is out of its range, a shape, dtype or layout does not fit, or a tensor is on another device than
        `stream`.
    HipError
        The launch fails.
    """
    steps = step if isinstance(step, DeviceTensor) else None
    facts = operands(stream, {"logits": logits, "out": out}, {"step": steps, "sequences": sequences})
    first = 0 if isinstance(step, DeviceTensor) else _below("step", step, 2**63)
    check_numbers(temperature, top_k, top_p, seed)
    heat, mass, kept = float(temperature), float(top_p), min(int(top_k), logits.shape[-1] if logits.shape else 0)
    draw = bool(heat) and kept != 1
    plan = _plan(stream.device, draw, *facts)
    if plan is None:
        return
    kernel, config, sizes = plan
    pointers = addresses(stream, logits, out, steps, sequences)
    share = 0 if mass == 1 else min(2**32 - 1, max(1, round(mass * 2**32)))  # 0: all
    top = 0 if kept == logits.shape[-1] else kept
    scale = math.log2(math.e) / heat if heat else 0.0  # weights are powers of 2
    kernel.launch(stream, config, SampleParams(*pointers, *sizes, int(seed), first, top, share, scale))


def check_numbers(temperature: float, top_k: int, top_p: float, seed: int) -> None:
    """Check the arguments of `launch`.

    Raises
    ------
    ArgumentError
        One is out of its range.
    """
    heat = number("temperature", temperature)
    if heat and heat < MIN_TEMPERATURE:
        raise ArgumentError(f"temperature is {temperature}; it takes 0, or {MIN_TEMPERATURE} and more")
    _below("top_k", top_k, 2**63)
    if not 0 < number("top_p", top_p) <= 1:
        raise ArgumentError(f"top_p is {top_p}; it takes a number above 0, at most 1")
    _below("seed", seed, 2**63)


def _below(name: str, value: int, end: int) -> int:
    found = integer(name, value)
    if found >= end:
        raise ArgumentError(f"{name} is {found}; it takes at most {end - 1}")
    return found


@lru_cache(maxsize=4096)
def _plan(
    device: Device, draw: bool, logits: Operand, *others: Operand
) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    _, dtype, shape, strides, address = logits
    as_dtype(dtype, "logits's dtype")
    if len(shape) != 2 or shape[1] >= MAX_COLUMNS:
        raise ArgumentError(f"logits has shape {shape}; it takes [batch, columns], fewer than {MAX_COLUMNS} columns")
    for name, kind, size, steps, _ in others:
        if kind != INT32 or size != shape[:1] or (shape[0] > 1 and steps != (1,)):
            raise ArgumentError(
                f"{name} is {kind.name} {size} with strides {steps}; it takes int32 {shape[:1]}, contiguous"
            )
    rows, columns, stride = as_rows("logits", shape, strides)
    if not rows:
        return None
    vector = vector_width((address, dtype.itemsize, (stride,)))
    specialisation = specialise(dtype.name, vector, long=columns > LONG_ROW, draw=draw)
    config = LaunchConfig(min(MAX_BLOCKS, rows), int(specialisation.constants["BLOCK"]))
    return load(specialisation, device), config, (rows, columns, stride)
