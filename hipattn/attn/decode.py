"""attention_decode(): attention of few queries over long caches, in one piece or in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hipattn.arguments import boolean, instance, integer
from hipattn.attn import execute, operands
from hipattn.attn.exchange import exchanged, planned
from hipattn.attn.kv_cache import KVCache
from hipattn.attn.options import EVERY_KEY, Window, check_window, plan_decode
from hipattn.attn.page_table import sequence_list
from hipattn.attn.paged_cache import PagedKVCache
from hipattn.errors import ArgumentError
from hipattn.kernels.flash_decode import MAX_SPLITS
from hipattn.kernels.mods import MaskMod, ScoreMod
from hipattn.kernels.rows import check_device
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOATS, INT32, UINT8, DeviceTensor, in_place

__all__ = ["attention_decode"]


def attention_decode(
    q: Any,
    k: Any,
    v: Any = None,
    lengths: Any = None,
    *,
    block_table: Any = None,
    k_scales: Any = None,
    v_scales: Any = None,
    layer: int | None = None,
    sequences: Sequence[int] | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: Window = EVERY_KEY,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
    bias: Any = None,
    mask: Any = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    out: Any = None,
    return_lse: bool = False,
    num_splits: int | None = None,
    workspace: Any = None,
    method: str = "auto",
    stream: Stream | None = None,
) -> Any:
    """Compute `attention` of the last few queries of each of many sequences over its cached keys and values.

    A sequence's keys are split among several blocks of the device, and the query heads that read the same keys share
    a block (flash decoding). What a sequence gives depends on itself and the number of splits, not on the others.

    Parameters
    ----------
    q
        [batch, seq_q, heads_q, head_dim], 1 to 64 queries a sequence, otherwise as in `attention`.
    k, v
        [batch, capacity, heads_kv, head_dim or value_dim]: sequence b has its keys in rows 0 to lengths[b] − 1.
        With `block_table`: a pool, [pages, page_size, heads_kv, head_dim or value_dim], pages of 1 to 256 rows. Any
        strides with a contiguous last dimension. Rows of no sequence may hold anything. Of q's dtype; or uint8, with
        `k_scales` and `v_scales`. Or k is a `KVCache` or a `PagedKVCache`, which stands for v, lengths, block_table and
        scales as well, and is read in place; its capacity, which a mask or bias is for, is what it has room for, not
        what it holds.
    lengths
        [batch]: how many keys each sequence has, those of its queries among them. Default: the capacity. In host
        memory: integers, which are checked and uploaded. On the device: int32, contiguous, used in place and **not
        checked**, which would have to wait for the device: wrong numbers read wrong memory.
    block_table
        [batch, pages of a sequence]: key j of sequence b is row j % page_size of page
        block_table[b, j // page_size]; pages past a sequence's length are not looked at. As `lengths`: checked in host
        memory (if the lengths are there as well), not checked on the device.
    k_scales, v_scales
        [heads_kv], positive, for k and v of uint8: their bits are e4m3, FNUZ where the device is a gfx942 and elsewhere
        the OCP's, and a key or value is such a number times its head's scale. In host memory, checked and uploaded; on
        the device float32, contiguous, used in place and not checked.
    layer
        Of a cache. Default: 0.
    sequences
        Of a `PagedKVCache`: which are the batch, in the order of q. Default: all it holds, oldest first.
    causal
        The last query stands at the sequence's last key, and each of them sees keys up to its own position. Without
        (for a tree of drafts, which a `mask` describes) every query sees every key.
    scale, window, alibi_slopes, softcap, sinks, score_mod, mask_mod
        As in `attention` of each sequence alone. The modifications' ``b`` is the sequence.
    bias, mask
        Broadcast to [batch, heads_q, seq_q, capacity], otherwise as in `attention`.
    out
        [batch, seq_q, heads_q, value_dim]: where to write the result, as in `attention`.
    return_lse
        Also return the LSE.
    num_splits
        Among how many blocks a sequence's keys are split, 1 to 256. Another number gives the same result up to
        rounding. Default: what keeps the device busiest, from the batch, the heads and the capacity.
    workspace
        [batch · heads_q · seq_q · (num_splits · (value_dim + 1) + 1)] or more of float32 on the device, contiguous:
        where the parts go until they are one result. With it and `out` the call uses only memory of the caller's, and
        so can be captured in a `Graph`, if all else is on the device too, and the stream's own or used on it before.
        Or a `hipattn.kernels.flash_decode.Workspace`, which keeps memory from call to call, one at a time, and need not
        be cleared for each. Default: memory that is kept for the next call, until `free_scratch`.
    method
        "flash", "reference" or "auto", as in `attention`.
    stream
        As in `attention`.

    Returns
    -------
    out
        [batch, seq_q, heads_q, value_dim], as of `attention`. A query that sees no key, as in a sequence of length 0,
        gives zeros.
    lse
        With `return_lse`: [batch, heads_q, seq_q], float32, likewise.

    Raises
    ------
    ArgumentError, ClosedError, PlatformError, CompileError, HipError, CodeObjectError
        As `attention`.
    """
    if stream is not None and type(stream) is not Stream:
        instance("stream", stream, Stream, "; Stream.from_handle wraps another library's")
    return_lse = boolean("return_lse", return_lse)
    cache = k if type(k) is not DeviceTensor and isinstance(k, KVCache | PagedKVCache) else None
    if cache is not None:
        given = {"v": v, "lengths": lengths, "block_table": block_table, "k_scales": k_scales, "v_scales": v_scales}
        for name, value in given.items():
            if value is not None:
                raise ArgumentError(f"{name} is given, and k is a {type(k).__name__}, which stands for it as well")
        k, v, (k_scales, v_scales) = _memory(cache, 0 if layer is None else layer, sequences)
    elif layer is not None or sequences is not None:
        name = "sequences" if layer is None else "layer"
        raise ArgumentError(f"{name} is given, and k is {type(k).__name__}; only a cache has {name}")
    elif v is None:
        raise ArgumentError(f"v is None, and k is {type(k).__name__}; it takes an array, or with a cache nothing")
    if window is not EVERY_KEY:
        window = check_window(window)
    splits = 0 if num_splits is None else integer("num_splits", num_splits, 1)
    if splits > MAX_SPLITS:
        raise ArgumentError(f"num_splits is {splits}; it takes 1 to {MAX_SPLITS}")
    others = {}
    for name, value in (
        ("lengths", lengths),
        ("block_table", block_table),
        ("k_scales", k_scales),
        ("v_scales", v_scales),
        ("alibi_slopes", alibi_slopes),
        ("sinks", sinks),
        ("bias", bias),
        ("mask", mask),
        ("score_mod", score_mod),
        ("mask_mod", mask_mod),
        ("workspace", workspace),
    ):
        if value is not None:
            others[name] = value

    def plan(device: Any, arrays: Any, pages: int | None) -> Any:
        options = causal, scale, window, softcap, method, tuple(others)
        return planned(plan_decode, device, (pages, splits), arrays, options)

    def make(device: Any, arrays: Any, beside: Any) -> Any:
        pages = None
        if "block_table" in beside:
            shape = beside["block_table"].shape
            if len(shape) != 2:
                raise ArgumentError(f"block_table has shape {shape}; it takes [batch, pages of a sequence]")
            pages = shape[1]
        return plan(device, arrays, pages)

    # q and what is no tensor is checked before lengths and pages are brought to the device, as if those were of one
    # page.
    if cache is not None:
        where = stream or k.device.default_stream
        check_device(where, k=k)
        there = in_place(q, stream=where, argument="q")
        plan(where.device, (there, k, v), 1 if isinstance(cache, PagedKVCache) else None)
        others |= _tables(cache, layer or 0, sequences, there.shape)

    if type(q) is type(k) is type(v) is DeviceTensor and (out is None or type(out) is DeviceTensor):
        if stream is None:
            stream = q.buffer.device.default_stream
        beside = operands.found(others, q.dtype, stream)
        call = make(stream.device, (q, k, v), beside)
        result, lse = execute.on_device(call, (q, k, v), out, beside, return_lse=return_lse, stream=stream)
        return (result, lse) if return_lse else result
    return exchanged(
        (q, k, v),
        out,
        others,
        make,
        return_lse=return_lse,
        on_host=method == "reference" and k_scales is None,  # what the bits mean depends on the device
        stream=stream,
        stored=(*FLOATS, UINT8),
    )


def _memory(
    cache: KVCache | PagedKVCache, layer: int, sequences: Sequence[int] | None
) -> tuple[DeviceTensor, DeviceTensor, tuple[Any, Any]]:
    """Return where a cache has a layer's keys and values, and their scales."""
    if isinstance(cache, PagedKVCache):
        return cache.keys(layer), cache.values(layer), cache.scales(layer) or (None, None)
    if sequences is not None:
        raise ArgumentError("sequences is given, and k is a KVCache, whose batch is all it holds")
    return *cache.whole(layer), (None, None)


def _tables(
    cache: KVCache | PagedKVCache, layer: int, sequences: Sequence[int] | None, shape: tuple[int, ...]
) -> dict[str, DeviceTensor]:
    """Return a cache's lengths, and the block table of sequences in pages, for q of a shape."""
    if isinstance(cache, KVCache):
        return {"lengths": cache.lengths(layer)}
    sequences = cache.sequences if sequences is None else sequence_list(sequences)
    if len(sequences) != shape[0]:
        raise ArgumentError(f"sequences are {len(sequences)}; q has shape {shape}, a batch of {shape[0]}")
    if not sequences:  # takes no memory
        stream = cache.keys().device.default_stream
        return {
            "lengths": DeviceTensor.empty((0,), INT32, stream=stream),
            "block_table": DeviceTensor.empty((0, 0), INT32, stream=stream),
        }
    return {"lengths": cache.lengths(sequences), "block_table": cache.block_table(sequences)}
