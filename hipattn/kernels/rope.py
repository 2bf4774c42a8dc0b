"""Rotary position embedding. Kernel: ``kernels_src/rope.hip``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from hipattn.arguments import integer, number
from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operand
from hipattn.kernels.rows import BLOCK, share, vector_width, widest
from hipattn.layout import overlaps
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import INT32, DeviceTensor, as_dtype

__all__ = ["STYLES", "RopeParams", "RopeTable", "defaults", "launch", "pairs_of", "quarters", "specialise"]

STYLES = ("interleaved", "half")
MAX_PAIRS = 256  # of a head: their frequencies travel with the arguments
MAX_POSITION = 2**24  # float32 holds every integer below

RopeTable = ctypes.c_float * MAX_PAIRS


class RopeParams(Arguments):
    """What ``rope`` takes."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("start", ctypes.c_int64),
        ("starts_batch", ctypes.c_int64),
        ("starts_token", ctypes.c_int64),
        *((f"{name}_{axis}", ctypes.c_int64) for name in ("x", "out") for axis in ("batch", "token", "head")),
        ("batch", ctypes.c_uint32),
        ("tokens", ctypes.c_uint32),
        ("heads", ctypes.c_uint32),
        ("pairs", ctypes.c_uint32),
        ("rest", ctypes.c_uint32),
        ("step", ctypes.c_uint32),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
        ("high", RopeTable),
        ("low", RopeTable),
    )


def specialise(dtype: str, vector: int, *, style: str) -> Specialisation:
    """Return the kernel for a dtype, `vector` pairs a thread at a time, and a style."""
    constants = {"BLOCK": BLOCK, "VECTOR": vector, "INTERLEAVED": style == "interleaved"}
    return Specialisation("rope", "rope", RopeParams, constants, {"scalar": dtype})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned heads."""
    for dtype, style in product(SCALARS, STYLES):
        yield specialise(dtype, widest(dtype), style=style)


def launch(
    x: DeviceTensor,
    out: DeviceTensor | None = None,
    *,
    style: str,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    start: int | DeviceTensor = 0,
    ends: DeviceTensor | None = None,
    positions: DeviceTensor | None = None,
    factors: tuple[float, ...] | None = None,
    stream: Stream,
) -> None:
    """Turn pairs of elements of each head by their token's position, in float32, rounded once to the dtype.

    Pair i is turned by position · base^(−2i / rotary_dim) radians. Angles are right to 1e-7 for every position
    below 2^24 (see the kernel).

    Parameters
    ----------
    x : [batch, tokens, heads, head_dim]
        float32, float16 or bfloat16; any strides with a contiguous last dimension.
    out : like `x`
        Default: `x` itself. Other memory otherwise: the two do not overlap.
    style
        "interleaved": pair i is (x[2i], x[2i + 1]), as GGUF files of llama have it; "half": it is
        (x[i], x[i + rotary_dim / 2]), as Hugging Face's models have it.
    base
        The frequencies' base, above 0.
    rotary_dim
        How many elements of a head are turned, from the first: even, at most 512. The rest stays as it is.
        Default: all.
    start : int, or [batch] of int32
        The position of the first token, of all sequences or of each; the others follow. Default: 0.
    ends : [batch] of int32
        In place of `start`: how many tokens each sequence has, these among them. They are its last.
    positions : [batch, tokens] of int32
        The position of each token, any strides. Default: `start` and after.
    factors : tuple of float
        Numbers that divide the frequencies, one a pair, as Llama 3.1 has them. Default: 1.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes, dtypes or layouts do not fit, two of `start`, `ends` and `positions` are given, `start` is too large, or
        a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    out = x if out is None else out
    tensors = {"start": start if isinstance(start, DeviceTensor) else None, "ends": ends, "positions": positions}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first = 0 if "start" in given else integer("start", start)
    if len(given) + (first > 0) > 1:
        raise ArgumentError("of start, ends and positions more than one is given; it takes one")
    if first > MAX_POSITION:
        raise ArgumentError(f"start is {first}; it takes at most {MAX_POSITION}")
    name, starts = next(iter(given.items()), ("", None))
    where = None if starts is None else operand(stream, name, starts)
    facts = operand(stream, "x", x), operand(stream, "out", out), where
    plan = _plan(stream.device, style, rotary_dim, x.pointer == out.pointer, *facts)
    if number("base", base) <= 0:
        raise ArgumentError(f"base is {base}; it takes a number above 0")
    if plan is None:
        return
    kernel, config, strides, sizes = plan
    if ends is not None:
        first = -x.shape[1]
    tables = quarters(sizes[3], base, factors)
    pointers = addresses(stream, x, out, starts)
    kernel.launch(stream, config, RopeParams(*pointers, first, *strides, *sizes, *tables))


@lru_cache(maxsize=4096)
def _plan(
    device: Device,
    style: str,
    rotary_dim: int | None,
    in_place: bool,
    x: Operand,
    out: Operand,
    starts: Operand | None,
) -> tuple[Kernel, LaunchConfig, tuple[int, ...], tuple[int, ...]] | None:
    if style not in STYLES:
        raise ArgumentError(f"style is {style!r}; accepted: {', '.join(STYLES)}")
    _, dtype, shape, x_strides, _ = x
    as_dtype(dtype, "x's dtype")
    if len(shape) != 4:
        raise ArgumentError(f"x has shape {shape}; it takes [batch, tokens, heads, head_dim]")
    for name, kind, size, strides, _ in (x, out):
        if kind != dtype or size != shape:
            raise ArgumentError(f"{name} is {kind.name} {size}; x is {dtype.name} {shape}, and both are alike")
        if shape[3] > 1 and strides[3] != 1:
            raise ArgumentError(f"{name} has strides {strides}; its last dimension must be contiguous")
    out_strides = out[3]
    if 0 not in shape and overlaps(shape, out_strides):
        raise ArgumentError(f"out has shape {shape} and strides {out_strides}; its elements must not overlap")
    if in_place and out_strides != x_strides:
        raise ArgumentError(f"out is x with strides {out_strides}; x has {x_strides}, and in place both are alike")
    batch, tokens, heads, head_dim = shape
    pairs = pairs_of(head_dim, rotary_dim)
    where = _starts(starts, batch, tokens)
    rest = 0 if in_place else head_dim - 2 * pairs
    rows, columns = batch * tokens * heads, max(pairs, rest)
    if not rows * columns:
        return None
    if rows >= 2**31:
        raise ArgumentError(f"x has {batch} * {tokens} * {heads} heads of tokens; it takes fewer than 2^31")
    # A thread takes whole vectors of pairs and of the rest.
    vector = vector_width(*((address, dtype.itemsize, (*steps[:3], pairs, rest)) for *_, steps, address in (x, out)))
    row_shift, blocks_per_row, config = share(rows, columns, vector)
    kernel = load(specialise(dtype.name, vector, style=style), device)
    strides = (*where, *x_strides[:3], *out_strides[:3])
    step = 0 if starts is not None and starts[0] == "positions" else 1
    return kernel, config, strides, (batch, tokens, heads, pairs, rest, step, row_shift, blocks_per_row)


def pairs_of(head_dim: int, rotary_dim: int | None) -> int:
    """Return how many pairs of a head are turned.

    Raises
    ------
    ArgumentError
        `rotary_dim`, or `head_dim` without it, is odd or too large.
    """
    turned, most = head_dim if rotary_dim is None else integer("rotary_dim", rotary_dim), min(head_dim, 2 * MAX_PAIRS)
    if turned % 2 or turned > most:
        name = "head_dim" if rotary_dim is None else "rotary_dim"
        most = 2 * MAX_PAIRS if rotary_dim is None else most // 2 * 2
        raise ArgumentError(f"{name} is {turned}; it takes an even number of at most {most}")
    return turned // 2


def _starts(starts: Operand | None, batch: int, tokens: int) -> tuple[int, int]:
    """Return the strides, over the batch and over tokens, of where positions are read."""
    if starts is None:
        return 0, 0
    name, dtype, shape, strides, _ = starts
    expected = (batch, tokens) if name == "positions" else (batch,)
    if dtype != INT32 or shape != expected:
        raise ArgumentError(f"{name} is {dtype.name} {shape}; it takes int32 {expected}")
    return strides[0], strides[1] if name == "positions" else 0


@lru_cache(maxsize=64)
def quarters(pairs: int, base: float, factors: tuple[float, ...] | None) -> tuple[ctypes.Array[Any], ctypes.Array[Any]]:
    """Return each pair's quarter turns a position, base^(−i / pairs) / factor · 2/π, as two floats to be added."""
    if factors is not None and len(factors) != pairs:
        raise ArgumentError(f"factors has {len(factors)} numbers; it takes {pairs}, one a pair")
    exact = float(base) ** (-np.arange(pairs) / max(pairs, 1)) * (2 / math.pi)
    if factors is not None:
        exact = exact / np.array(factors, np.float64)
    high = exact.astype(np.float32)
    return RopeTable(*high.tolist()), RopeTable(*(exact - high).tolist())
