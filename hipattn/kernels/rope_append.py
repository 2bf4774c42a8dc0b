"""RoPE and the append to a cache in one launch. Kernel: ``kernels_src/rope_append.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import Any

from hipattn.arguments import integer, number
from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.float8 import E4M3_FNUZ, e4m3
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rope import MAX_POSITION, STYLES, RopeTable, pairs_of, quarters
from hipattn.kernels.rows import BLOCK, share, vector_width, widest
from hipattn.layout import overlaps
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, INT32, UINT8, DeviceTensor, as_dtype

__all__ = ["RopeAppendParams", "defaults", "launch", "specialise"]

_NEW, _CACHES = ("q", "k", "v"), ("k_cache", "v_cache")
_NewPointers, _NewSteps = ctypes.c_void_p * len(_NEW), ctypes.c_int64 * len(_NEW)
_CachePointers, _CacheSteps = ctypes.c_void_p * len(_CACHES), ctypes.c_int64 * len(_CACHES)
_SIZES = ("batch", "tokens", "heads", "heads_kv", "pairs", "rest", "v_dim", "max_pages", "page_size", "pages")


class RopeAppendParams(Arguments):
    """What ``rope_append`` takes."""

    _fields_ = (
        ("x", _NewPointers),
        ("cache", _CachePointers),
        ("scales", _CachePointers),
        ("ends", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("start", ctypes.c_int64),
        *((f"x_{axis}", _NewSteps) for axis in ("batch", "token", "head")),
        *((f"cache_{axis}", _CacheSteps) for axis in ("page", "token", "head")),
        ("table_row", ctypes.c_int64),
        *((name, ctypes.c_uint32) for name in _SIZES),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
        ("high", RopeTable),
        ("low", RopeTable),
    )


def specialise(dtype: str, vector: int, *, style: str, fp8: bool = False, fnuz: bool = False) -> Specialisation:
    """Return the kernel for a dtype, `vector` pairs a thread at a time, a style, caches of e4m3 and which one."""
    constants = {"BLOCK": BLOCK, "VECTOR": vector, "INTERLEAVED": style == "interleaved", "FP8": fp8, "FNUZ": fnuz}
    return Specialisation("rope_append", "rope_append", RopeAppendParams, constants, {"scalar": dtype})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned heads."""
    for dtype, style in product(SCALARS, STYLES):
        yield specialise(dtype, widest(dtype), style=style)


def launch(
    q: DeviceTensor,
    k: DeviceTensor,
    v: DeviceTensor,
    k_cache: DeviceTensor,
    v_cache: DeviceTensor,
    *,
    style: str,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    factors: tuple[float, ...] | None = None,
    start: int = 0,
    ends: DeviceTensor | None = None,
    block_table: DeviceTensor | None = None,
    scales: tuple[DeviceTensor, DeviceTensor] | None = None,
    stream: Stream,
) -> None:
    """Turn queries and keys in place, as `rope.launch` does, and copy keys and values to where their tokens belong.

    Parameters
    ----------
    q, k : [batch, tokens, heads or heads_kv, head_dim]
        float32, float16 or bfloat16; any strides with a contiguous last dimension. They do not overlap.
    v : [batch, tokens, heads_kv, value_dim]
        Likewise, of the same dtype.
    k_cache, v_cache : [batch, capacity, heads_kv, head_dim or value_dim]
        Likewise; with `scales` uint8. With `block_table`: pools, [pages, page_size, heads_kv, head_dim or value_dim].
    style, base, rotary_dim, factors
        As of `rope.launch`. With `rotary_dim` 0 nothing is turned.
    start
        The position of the first token, of all sequences: in RoPE and in the cache. At most capacity - tokens.
    ends : [batch] of int32, contiguous
        In place of `start`: how many tokens each sequence has, these among them, which are its last. With it the launch
        depends on no position, and can be captured in a `Graph`. What it holds is not checked: a token that has no
        place in the cache is not written.
    block_table : [batch, max_pages] of int32, contiguous rows
        The pages of each sequence, not checked either. It takes `ends`.
    scales : two of [heads_kv]
        As of `paged_append.launch`: caches hold e4m3 of what a key, turned, or a value is in its dtype.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes, dtypes or layouts do not fit, there is no room, or a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    needed = {"q": q, "k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache}
    k_scales, v_scales = scales or (None, None)
    optional = {"ends": ends, "block_table": block_table, "k_scales": k_scales, "v_scales": v_scales}
    plan = _plan(stream.device, style, rotary_dim, operands(stream, needed, optional))
    if number("base", base) <= 0:
        raise ArgumentError(f"base is {base}; it takes a number above 0")
    tokens = k.shape[1]
    if ends is not None:
        if start:
            raise ArgumentError("start and ends are given; it takes one")
        start = -tokens
    elif block_table is not None:
        raise ArgumentError("block_table is given without ends")
    elif integer("start", start) > (most := min(k_cache.shape[1] - tokens, MAX_POSITION)):
        raise ArgumentError(f"start is {start}; a cache of {k_cache.shape[1]} takes {tokens} tokens at 0 to {most}")
    if plan is None:
        return
    kernel, config, pairs, numbers = plan
    *pointers, k_cache_at, v_cache_at, where, pages, k_scales_at, v_scales_at = addresses(
        stream, *needed.values(), *optional.values()
    )
    caches, per_head = _CachePointers(k_cache_at, v_cache_at), _CachePointers(k_scales_at, v_scales_at)
    tables = quarters(pairs, base, factors)
    p = RopeAppendParams(_NewPointers(*pointers), caches, per_head, where, pages, start, *numbers, *tables)
    kernel.launch(stream, config, p)


@lru_cache(maxsize=4096)
def _plan(
    device: Device, style: str, rotary_dim: int | None, tensors: tuple[Operand, ...]
) -> tuple[Kernel, LaunchConfig, int, tuple[Any, ...]] | None:
    if style not in STYLES:
        raise ArgumentError(f"style is {style!r}; accepted: {', '.join(STYLES)}")
    named = {facts[0]: facts for facts in tensors}
    max_pages, table_row = _check(named)
    rows = [named[name] for name in (*_NEW, *_CACHES)]
    dtype = rows[0][1]
    (batch, tokens, heads, head_dim), (*_, heads_kv, v_dim) = rows[0][2], rows[2][2]
    pages, page_size = rows[3][2][:2]
    pairs = pairs_of(head_dim, rotary_dim)
    rest = head_dim - 2 * pairs
    count, columns = batch * tokens * (heads + 2 * heads_kv), max(pairs, rest, v_dim)
    if not count * columns:
        return None
    if count >= 2**31:
        raise ArgumentError(
            f"q has {batch} * {tokens} tokens of {heads + 2 * heads_kv} heads; it takes fewer than 2^31"
        )
    # A thread takes whole vectors of pairs, of the rest and of values.
    widths = pairs, rest, v_dim
    vector = vector_width(*((at, kind.itemsize, (*steps[:3], *widths)) for _, kind, _, steps, at in rows))
    row_shift, blocks_per_row, config = share(count, columns, vector)
    fp8 = "k_scales" in named
    fnuz = fp8 and e4m3(device.arch) == E4M3_FNUZ
    kernel = load(specialise(dtype.name, vector, style=style, fp8=fp8, fnuz=fnuz), device)
    steps = [steps[:3] for *_, steps, _ in rows]
    new, caches = zip(*steps[: len(_NEW)], strict=True), zip(*steps[len(_NEW) :], strict=True)
    strides = *(_NewSteps(*each) for each in new), *(_CacheSteps(*each) for each in caches)
    sizes = batch, tokens, heads, heads_kv, *widths, max_pages, page_size, pages
    return kernel, config, pairs, (*strides, table_row, *sizes, row_shift, blocks_per_row)


def _check(named: Mapping[str, Operand]) -> tuple[int, int]:
    """Check the tensors, and return how many pages a sequence has and the stride of the table's rows."""
    dtype = as_dtype(named["q"][1], "q's dtype")
    for name in (*_NEW, *_CACHES):
        _, kind, shape, strides, _ = named[name]
        if len(shape) != 4:
            raise ArgumentError(f"{name} has shape {shape}; it takes 4 dimensions, [.., .., heads, dim]")
        if "k_scales" in named and name in _CACHES:
            if kind != UINT8:
                raise ArgumentError(f"{name} is {kind.name}; with scales it takes uint8")
        elif kind != dtype:
            raise ArgumentError(f"{name} is {kind.name}; q is {dtype.name}, and all take the same")
        if shape[3] > 1 and strides[3] != 1:
            raise ArgumentError(f"{name} has strides {strides}; its last dimension must be contiguous")
        if name in ("q", "k") and 0 not in shape and overlaps(shape, strides):
            raise ArgumentError(f"{name} has shape {shape} and strides {strides}; its elements must not overlap")
    q, k, v, k_cache, v_cache = (named[name][2] for name in (*_NEW, *_CACHES))
    if (*k[:2], k[3]) != (*q[:2], q[3]):
        raise ArgumentError(f"k has shape {k}; q has {q}, and they differ at most in the heads")
    if v[:3] != k[:3]:
        raise ArgumentError(f"v has shape {v}; k has {k}, and they differ at most in the last dimension")
    paged, batch = "block_table" in named, q[0]
    first = k_cache[0] if paged else batch
    for name, found, new in (("k_cache", k_cache, k), ("v_cache", v_cache, v)):
        wanted = (first, k_cache[1], *new[2:])
        if found != wanted:
            raise ArgumentError(f"{name} has shape {found}; it takes {wanted}")
    if k_cache[0] * k_cache[1] >= 2**31 or (paged and not k_cache[1]):
        raise ArgumentError(f"k_cache has {k_cache[0]} * {k_cache[1]} tokens; it takes 1 or more, fewer than 2^31")
    max_pages = (named["block_table"][2] or (0,))[-1] if paged else 1
    for name, wanted_kind, wanted in (
        ("ends", INT32, (batch,)),
        ("block_table", INT32, (batch, max_pages)),
        *((name, FLOAT32, k[2:3]) for name in ("k_scales", "v_scales")),
    ):
        if name in named:
            _, kind, size, strides, _ = named[name]
            if kind != wanted_kind or size != wanted or (size[-1] > 1 and strides[-1] != 1):
                raise ArgumentError(
                    f"{name} is {kind.name} {size} with strides {strides}; it takes {wanted_kind.name} {wanted}, the "
                    "last dimension contiguous"
                )
    return max_pages, named["block_table"][3][0] if paged else 0
