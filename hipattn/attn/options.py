"""What a call of attention asks for: checked once, and remembered for calls with the same shapes and options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from hipattn.arguments import boolean, number
from hipattn.errors import ArgumentError
from hipattn.kernels import flash_decode, flash_fwd
from hipattn.kernels.flash_options import Formula
from hipattn.kernels.float8 import e4m3
from hipattn.layout import overlaps
from hipattn.runtime.device import Device
from hipattn.tensor import UINT8, as_dtype

__all__ = [
    "EVERY_KEY",
    "METHODS",
    "Cache",
    "Facts",
    "Options",
    "Plan",
    "Window",
    "check_result",
    "check_shapes",
    "check_window",
    "laid_out",
    "plan",
    "plan_decode",
    "plan_varlen",
]

METHODS = ("auto", "flash", "staged", "reference")

# Exponents are differences of scores in float32: beyond 1e9 or so what rounding leaves of one overflows.
_LARGEST_SCALE = 1e6
_LARGEST_SOFTCAP = 1e30

_MOST_QUERIES = 64  # of a sequence, in decoding
_LARGEST_PAGE = 256  # rows

Window = tuple[int | None, int | None]
EVERY_KEY: Window = (None, None)


class Facts(NamedTuple):
    """What is decided by of a tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Options(NamedTuple):
    """The options that are no arrays, as `hipattn.attention` takes them."""

    causal: bool
    scale: float | None
    window: Window
    softcap: float | None
    method: str
    others: tuple[str, ...]  # the names of the other options that are set


class Cache(NamedTuple):
    """How decoding finds a sequence's keys.

    Attributes
    ----------
    num_splits : int
        Of a sequence's keys.
    workspace : int
        Numbers that the parts take; 0 for a single one.
    pages, page_size : int
        Of the pool; 0 where caches are in one piece.
    heads_kv : int
    float8 : numpy.dtype or None
        Which e4m3 keys and values are of, if they are stored in 8 bits.
    """

    num_splits: int
    workspace: int
    pages: int
    page_size: int
    heads_kv: int
    float8: np.dtype[Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A call whose shapes and options fit.

    Attributes
    ----------
    method : str
        "flash", "staged" or "reference".
    layout : str
        "bshd" or "bhsd"; of packed sequences "shd".
    dtype : numpy.dtype
    out, lse : tuple of int
        The shapes of the results.
    scores : tuple of int
        (batch, heads_q, seq_q, seq_k).
    qkv : tuple of Facts
        Of q, k and v as they were checked: the tensors' own unless there is a cache.
    formula : dict
        causal, scale, window and softcap; a side of the window that hides nothing is None.
    cache : Cache or None
        Of decoding.
    """

    method: str
    layout: str
    dtype: np.dtype[Any]
    out: tuple[int, ...]
    lse: tuple[int, ...]
    scores: tuple[int, int, int, int]
    qkv: tuple[Facts, Facts, Facts]
    formula: dict[str, Any]
    cache: Cache | None = None

    @property
    def numbers(self) -> Formula:
        """The formula as kernels are prepared for it."""
        return self.formula["scale"], self.formula["causal"], self.formula["window"], self.formula["softcap"]


@lru_cache(maxsize=4096, typed=True)  # typed: True is no 1 here
def plan(device: Device | None, layout: str, *given: Any) -> Plan:
    """Check a call of `hipattn.attention`, and choose the method.

    Parameters
    ----------
    device
        Where it is computed; None for the host.
    layout
        "bshd" or "bhsd".
    *given
        The fields of `Facts` of q, k and v, then those of `Options`.

    Raises
    ------
    ArgumentError
        Something does not fit, or the method cannot serve it; the message names the argument.
    """
    q, k, v, options = Facts(*given[:3]), Facts(*given[3:6]), Facts(*given[6:9]), Options(*given[9:])
    batch, heads_q, seq_q, seq_k, head_dim, value_dim = check_shapes(q, k, v, layout=layout)
    out = (batch, seq_q, heads_q, value_dim) if layout == "bshd" else (batch, heads_q, seq_q, value_dim)
    scores = batch, heads_q, seq_q, seq_k
    return _plan(device, layout, out, scores[:3], scores, head_dim, (q, k, v), options)


@lru_cache(maxsize=4096, typed=True)
def plan_varlen(device: Device | None, sequences: int, *given: Any) -> Plan:
    """Check a call of `hipattn.attention_varlen` for so many sequences, as `plan` does."""
    q, k, v, options = Facts(*given[:3]), Facts(*given[3:6]), Facts(*given[6:9]), Options(*given[9:])
    for name, facts in (("q", q), ("k", k), ("v", v)):
        if len(facts.shape) != 3:
            raise ArgumentError(f"{name} has shape {facts.shape}; it takes [total, heads, dim]")
    batched = (Facts(facts.dtype, (1, *facts.shape), (0, *facts.strides)) for facts in (q, k, v))
    _, heads_q, total_q, total_k, head_dim, value_dim = check_shapes(*batched)
    out, lse = (total_q, heads_q, value_dim), (heads_q, total_q)
    scores = sequences, heads_q, total_q, total_k
    return _plan(device, "shd", out, lse, scores, head_dim, (q, k, v), options)


@lru_cache(maxsize=4096, typed=True)
def plan_decode(device: Device | None, caches: tuple[int | None, int], *given: Any) -> Plan:
    """Check a call of `hipattn.attention_decode`, as `plan` does.

    Parameters
    ----------
    device
        Where it is computed; None for the host.
    caches
        The pages of a sequence, None for caches in one piece; and the number of splits, 0 for as many as are best.
    *given
        As of `plan`.
    """
    q, k, v, options = Facts(*given[:3]), Facts(*given[3:6]), Facts(*given[6:9]), Options(*given[9:])
    pages, num_splits = caches
    pool = 0, 0
    float8 = _float8(device, k, v, options.others)
    if float8 is not None:  # that they are of 8 bits has been checked
        k, v = (Facts(q.dtype, x.shape, x.strides) for x in (k, v))
    if options.method == "staged":
        raise ArgumentError("method is 'staged'; decoding takes 'auto', 'flash' and 'reference'")
    if pages is not None:
        for name, facts in (("k", k), ("v", v)):
            if len(facts.shape) != 4 or len(q.shape) != 4:
                break  # refused below
            if not 1 <= facts.shape[1] <= _LARGEST_PAGE:
                raise ArgumentError(f"{name} has shape {facts.shape}; a page takes 1 to {_LARGEST_PAGE} rows")
            if facts.shape[:2] != k.shape[:2]:
                raise ArgumentError(f"{name} has shape {facts.shape}; k has {k.shape[0]} pages of {k.shape[1]} rows")
        else:
            pool = k.shape[0], k.shape[1]
            size = q.shape[0], pages * k.shape[1]
            k, v = (Facts(x.dtype, (*size, *x.shape[2:]), x.strides) for x in (k, v))
    batch, heads_q, seq_q, seq_k, head_dim, value_dim = check_shapes(q, k, v)
    if not 1 <= seq_q <= _MOST_QUERIES:
        raise ArgumentError(
            f"q has shape {q.shape}; decoding takes 1 to {_MOST_QUERIES} queries of each sequence: "
            "longer prompts go in parts, or to attention or attention_varlen"
        )
    scores = batch, heads_q, seq_q, seq_k
    rows = seq_q * heads_q // max(1, k.shape[2])

    def decodes(device: Device, dtype: np.dtype[Any], head_dim: int, value_dim: int) -> str | None:
        return flash_decode.supports(device, dtype, head_dim, value_dim, rows, float8 is not None)

    out = batch, seq_q, heads_q, value_dim
    made = _plan(device, "bshd", out, scores[:3], scores, head_dim, (q, k, v), options, decodes)
    if made.method == "flash" and device is not None and not num_splits:
        sizes = scores, k.shape[2], head_dim, value_dim
        num_splits = flash_decode.best_splits(device, q.dtype, *sizes, made.numbers, float8 is not None)
    workspace = flash_decode.workspace_size(math.prod(scores[:3]), num_splits, value_dim)
    return replace(made, cache=Cache(num_splits, workspace, *pool, k.shape[2], float8))


def _float8(device: Device | None, k: Facts, v: Facts, others: Sequence[str]) -> np.dtype[Any] | None:
    """Return which e4m3 the keys and values are of; None if they are no such numbers."""
    scales = [name for name in ("k_scales", "v_scales") if name in others]
    for name, facts in (("k", k), ("v", v)):
        if scales and facts.dtype != UINT8:
            raise ArgumentError(f"{scales[0]} is given; {name} is {facts.dtype.name}, and only uint8 (e4m3) has scales")
        if facts.dtype == UINT8 and len(scales) < 2:
            raise ArgumentError(f"{name} is uint8, which stands for e4m3: it takes k_scales and v_scales")
    if not scales:
        return None
    assert device is not None  # which says what the bits mean
    return e4m3(device.arch)


# Says why a kernel cannot serve a device, dtype, head_dim and value_dim.
Supports = Callable[[Device, np.dtype[Any], int, int], str | None]


def _plan(
    device: Device | None,
    layout: str,
    out: tuple[int, ...],
    lse: tuple[int, ...],
    scores: tuple[int, int, int, int],
    head_dim: int,
    qkv: tuple[Facts, Facts, Facts],
    options: Options,
    decodes: Supports | None = None,
) -> Plan:
    dtype = qkv[0].dtype
    causal = boolean("causal", options.causal)
    scale = 1 / math.sqrt(head_dim) if options.scale is None else number("scale", options.scale)
    softcap = None if options.softcap is None else number("softcap", options.softcap)
    if abs(scale) > _LARGEST_SCALE:
        raise ArgumentError(f"scale is {scale}; it takes a number of at most {_LARGEST_SCALE:.0e}")
    if softcap is not None and not 1 / _LARGEST_SOFTCAP <= softcap <= _LARGEST_SOFTCAP:
        raise ArgumentError(f"softcap is {softcap}; it takes a positive number of at most {_LARGEST_SOFTCAP:.0e}")
    left, right = options.window
    _, _, seq_q, seq_k = scores
    for name, rows in (("q", seq_q), ("k", seq_k)):
        if rows >= 2**30:  # in the kernel a position is the sum of two numbers of rows
            raise ArgumentError(f"{name} has {rows} rows; it takes fewer than 2^30")
    window = (
        left if left is not None and left < seq_k - 1 else None,
        right if right is not None and right < seq_q - 1 else None,
    )
    method = _method(device, dtype, head_dim, out[-1], options, decodes)
    formula = {"causal": causal, "scale": scale, "window": window, "softcap": softcap}
    return Plan(method, layout, dtype, out, lse, scores, qkv, formula)


def _method(
    device: Device | None,
    dtype: np.dtype[Any],
    head_dim: int,
    value_dim: int,
    options: Options,
    decodes: Supports | None,
) -> str:
    method = options.method
    if method not in METHODS:
        raise ArgumentError(f"method is {method!r}; accepted: {', '.join(map(repr, METHODS))}")
    if device is None or method == "reference":
        return "reference"
    beyond = ["window"] if options.window != EVERY_KEY else []
    beyond += ["softcap"] if options.softcap is not None else []
    beyond += options.others  # of packed sequences, among others, where they start
    if method == "staged":
        if beyond:
            raise ArgumentError(
                f"{beyond[0]} is given; method 'staged' takes causal, scale and return_lse, and 'flash' all options"
            )
        return "staged"
    refused = (decodes or flash_fwd.supports)(device, dtype, head_dim, value_dim)
    if refused is None:
        return "flash"
    if method == "flash" or decodes:
        raise ArgumentError(f"method is {method!r}: {refused}; 'reference' computes it on the host with NumPy")
    if beyond:
        raise ArgumentError(
            f"{beyond[0]} is given, which method 'flash' serves: {refused}; 'reference' computes it on the host "
            "with NumPy"
        )
    return "staged"


def check_window(window: Any) -> Window:
    """Return the keys that a query sees to the left and right of its own position; None is no limit.

    Raises
    ------
    ArgumentError
        It is no pair of None or integers of 0 or more.
    """
    if isinstance(window, Sequence) and len(window) == 2:
        sides = tuple(None if side is None else _keys(side) for side in window)
        if -1 not in sides:
            return sides  # type: ignore[return-value]
    raise ArgumentError(f"window is {window!r}; it takes (left, right), each None (no limit) or a number of keys >= 0")


def _keys(side: Any) -> int:
    """Return a number of keys, -1 for what is none."""
    is_integer = isinstance(side, int | np.integer) and not isinstance(side, bool)
    return int(side) if is_integer and side >= 0 else -1


def check_shapes(
    q: Any,
    k: Any,
    v: Any,
    *,
    layout: str = "bshd",
    names: tuple[str, str, str] = ("q", "k", "v"),
) -> tuple[int, int, int, int, int, int]:
    """Check what attention takes and return (batch, heads_q, seq_q, seq_k, head_dim, value_dim).

    The three are `DeviceTensor` or `Facts`.

    Raises
    ------
    ArgumentError
        A rank, size, dtype or stride does not fit; the message names the tensor, what it got and what it takes.
    """
    for name, tensor in zip(names, (q, k, v), strict=True):
        as_dtype(tensor.dtype, f"{name}'s dtype")
        if len(tensor.shape) != 4:
            raise ArgumentError(f"{name} has shape {tensor.shape}; it takes 4 dimensions, {layout}")
        if tensor.dtype != q.dtype:
            raise ArgumentError(f"{name} is {tensor.dtype.name}; {names[0]} is {q.dtype.name}, and all must agree")
        if tensor.strides[3] != 1 and tensor.shape[3] > 1:
            raise ArgumentError(f"{name} has strides {tensor.strides}; its last dimension must be contiguous")
    if layout not in ("bshd", "bhsd"):
        raise ArgumentError(f"layout is {layout!r}; accepted: 'bshd', 'bhsd'")
    sequence, head = (1, 2) if layout == "bshd" else (2, 1)
    batch, head_dim = q.shape[0], q.shape[3]
    heads_q, heads_kv = q.shape[head], k.shape[head]
    seq_q, seq_k = q.shape[sequence], k.shape[sequence]
    value_dim = v.shape[3]
    wanted = laid_out(layout, batch, heads_kv, seq_k, head_dim)
    if k.shape != wanted:
        raise ArgumentError(f"{names[1]} has shape {k.shape}; with {names[0]} {q.shape} it takes {wanted}")
    wanted = laid_out(layout, batch, heads_kv, seq_k, value_dim)
    if v.shape != wanted:
        raise ArgumentError(f"{names[2]} has shape {v.shape}; with {names[1]} {k.shape} it takes {wanted}")
    if not head_dim or (heads_q % heads_kv if heads_kv else heads_q):
        raise ArgumentError(
            f"{names[0]} has {heads_q} heads of {head_dim}, {names[1]} has {heads_kv}; the former must be a multiple "
            "of the latter, and head_dim at least 1"
        )
    return batch, heads_q, seq_q, seq_k, head_dim, value_dim


@lru_cache(maxsize=4096)
def check_result(
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    wanted: tuple[int, ...],
    wanted_dtype: np.dtype[Any],
) -> None:
    """Check where a result is to be written.

    Raises
    ------
    ArgumentError
        Its shape or dtype is another, or the strides let elements overlap or the last dimension's lie apart.
    """
    if shape != wanted or dtype != wanted_dtype:
        raise ArgumentError(f"{name} is {dtype.name} {shape}; it takes {wanted_dtype.name} {wanted}")
    if shape[-1] > 1 and strides[-1] != 1:
        raise ArgumentError(f"{name} has strides {strides}; its last dimension must be contiguous")
    if overlaps(shape, strides):
        raise ArgumentError(f"{name} has shape {shape} and strides {strides}; its elements overlap")


def laid_out(layout: str, batch: int, heads: int, sequence: int, dim: int) -> tuple[int, int, int, int]:
    """Return the shape of a tensor in a layout."""
    return (batch, sequence, heads, dim) if layout == "bshd" else (batch, heads, sequence, dim)
