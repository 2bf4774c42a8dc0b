"""Fused attention of few queries over long caches. Kernel: ``kernels_src/flash_decode.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.division import divisor_fields, set_divisor
from hipattn.kernels.flash_options import OPTION_FIELDS, OPTIONS, Features, Formula, dtype_names, fill, is_wide, resolve
from hipattn.kernels.flash_tiles import FLAG_BYTES, Tiles, choose_decode, resident
from hipattn.kernels.mods import MAX_VALUES, MaskMod, ScoreMod
from hipattn.kernels.rows import ACCESS_BYTES, check_device, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig, Template
from hipattn.runtime.scratch import Scratch
from hipattn.runtime.stream import Stream
from hipattn.tensor import UINT8, DeviceTensor

__all__ = [
    "MAX_SPLITS",
    "FlashDecodeParams",
    "Workspace",
    "best_splits",
    "defaults",
    "launch",
    "specialise",
    "supports",
    "workspace_size",
]

MAX_SPLITS = 256  # one wave makes a result of all parts of a row
_ON_THE_WAY = 50 << 10  # bytes from memory to a compute unit at once, that its share of the bandwidth takes


class FlashDecodeParams(Arguments):
    """What ``flash_decode`` takes. Strides in elements; of paged k and v, `_batch` is that of pages."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse")),
        *((name, ctypes.c_void_p) for name in ("lengths", "block_table", "parts", "part_lse", "tickets")),
        *((f"{tensor}_{axis}", ctypes.c_int64) for tensor in (*"qkv", "out") for axis in ("batch", "row", "head")),
        ("table_batch", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("heads", "groups", "seq_q", "seq_k", "row_tiles", "splits")),
        *divisor_fields("groups"),
        *divisor_fields("splits"),
        *OPTION_FIELDS,
        *((name, ctypes.c_void_p) for name in ("k_scales", "v_scales")),
    )


def specialise(
    tiles: Tiles,
    dtype: str,
    head_dim: int,
    value_dim: int,
    group: int,
    features: Features,
    *,
    vector: int,
    split: bool,
    lengths: bool,
    page_size: int | None = None,
    float8: bool = False,
    wide: bool = False,
) -> Specialisation:
    """Return the kernel for tensors of `dtype`.

    Parameters
    ----------
    tiles
        Of `choose_decode`, for the chip.
    dtype, head_dim, value_dim
        Of the tensors.
    group
        Query heads that read the same keys.
    features
        What is compiled in.
    vector
        How many elements of q, k, v and out can be moved at once.
    split
        Whether the result is one of parts of the keys.
    lengths
        Whether each sequence has its own length.
    page_size
        Rows of a page; None for caches in one piece.
    float8
        Whether k and v are e4m3, in the chip's format.
    wide
        Whether a tile of keys, in one piece, spans 2^31 bytes.
    """
    constants = {
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "GROUP": group,
        "WAVES": tiles.waves,
        "ROW_WAVES": tiles.row_waves or tiles.waves,
        "WAVE_ROWS": tiles.wave_rows,
        "BLOCK_N": tiles.block_n,
        "MATRIX_ROWS": tiles.matrix_rows,
        "KEY_LANES": tiles.key_lanes,
        "MIN_WAVES": tiles.min_waves,
        "LDS_BYTES": tiles.lds_bytes,
        "VECTOR": vector,
        "WIDE": wide,
        **features.constants,
        "BLOCK_MASK": False,
        "SPLIT": split,
        "LENGTHS": lengths,
    }
    if page_size is not None:
        constants["PAGE_SIZE"] = page_size
    if float8:
        constants["FLOAT8"] = True  # for the name
    rows = "key_rows.h" if page_size is None else "key_rows_paged.h"
    return Specialisation(
        "flash_decode",
        "flash_decode",
        FlashDecodeParams,
        constants,
        {"scalar": dtype, "bias_scalar": features.bias or "float32"},
        includes=(*(["cache_e4m3.h"] if float8 else []), rows, tiles.layer),
        prelude=features.prelude("FlashDecodeParams"),
    )


def defaults(arch: str) -> Iterator[Specialisation]:
    """Return the kernels of one aligned query a sequence, for the most common dtypes, head and group sizes.

    One of them reads keys and values in 8 bits.
    """
    cases = *product(((64, 4), (128, 1), (128, 4)), (None, 16), (False,)), ((128, 4), 16, True)
    for dtype, ((head_dim, group), page_size, float8) in product(("float16", "bfloat16"), cases):
        tiles = choose_decode(arch, dtype, head_dim, head_dim, group, float8)
        if tiles is not None:
            options: dict[str, Any] = {"vector": widest(dtype), "split": True, "lengths": True}
            options |= {"page_size": page_size, "float8": float8}
            yield specialise(tiles, dtype, head_dim, head_dim, group, Features(), **options)


def supports(
    device: Device, dtype: np.dtype[Any], head_dim: int, value_dim: int, rows: int, float8: bool = False
) -> str | None:
    """Return why the kernel cannot serve tensors of these sizes on the device; None if it can."""
    if head_dim < 1 or value_dim < 1:
        return f"head_dim is {head_dim} and value head_dim {value_dim}; the kernel takes 1 or more"
    if choose_decode(device.arch, dtype.name, head_dim, value_dim, rows, float8) is None:
        return f"head_dim {head_dim}, value head_dim {value_dim} in {dtype.name} does not fit {device.arch}"
    return None


class Workspace:
    """Memory for the parts of a result, kept from one launch to the next. For one thread at a time."""

    def __init__(self) -> None:
        self._parts, self._tickets = Scratch(), Scratch(zeros=True)

    def get(self, parts: int, tickets: int, stream: Stream) -> tuple[int, int]:
        """Return the addresses of memory for parts, and of tickets that are 0; `parts` and `tickets` in bytes.

        Raises
        ------
        HipError
            The device has too little memory.
        """
        buffers = self._parts.get(parts, stream), self._tickets.get(tickets, stream)
        for buffer in buffers:
            buffer.used_on(stream)
        return buffers[0].pointer, buffers[1].pointer

    def reserve(self, rows: int, num_splits: int, value_dim: int, stream: Stream) -> None:
        """Allocate what a launch of `rows` rows of queries takes, so that it does not.

        Raises
        ------
        HipError
            The device has too little memory.
        """
        if num_splits > 1:
            self.get(4 * rows * num_splits * (value_dim + 1), 4 * rows, stream)

    def close(self) -> None:
        """Free the memory, after the work that uses it. The object can be used again."""
        self._parts.close()
        self._tickets.close()


def workspace_size(rows: int, num_splits: int, value_dim: int) -> int:
    """Return how many numbers a launch needs for parts: of each row, and a ticket; 0 where nothing is split."""
    return rows * (num_splits * (value_dim + 1) + 1) if num_splits > 1 else 0


def launch(
    q: DeviceTensor,
    k: DeviceTensor,
    v: DeviceTensor,
    out: DeviceTensor,
    *,
    lengths: DeviceTensor | None = None,
    block_table: DeviceTensor | None = None,
    k_scales: DeviceTensor | None = None,
    v_scales: DeviceTensor | None = None,
    lse: DeviceTensor | None = None,
    scale: float,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float | None = None,
    alibi_slopes: DeviceTensor | None = None,
    sinks: DeviceTensor | None = None,
    bias: DeviceTensor | None = None,
    mask: DeviceTensor | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    num_splits: int = 0,
    workspace: DeviceTensor | Workspace,
    stream: Stream,
) -> None:
    """Compute attention over each sequence's keys, by the formula of `hipattn.attn.reference`.

    Parameters
    ----------
    q, out
        [batch, seq_q, heads_q, head_dim or value_dim], any strides with a contiguous last dimension.
    k, v
        [batch, capacity, heads_kv, head_dim or value_dim], likewise, of q's dtype; with `block_table`
        [pages, page_size, heads_kv, head_dim or value_dim]. With scales uint8, the bits of the device's e4m3
        (`float8.e4m3`).
    lengths
        [batch] of int32, contiguous: how many keys each sequence has, at most its capacity, which is the default.
    block_table
        [batch, pages of a sequence] of int32 with a contiguous last dimension: which pages hold a sequence's keys.
    k_scales, v_scales
        [heads_kv] of float32, contiguous, positive, both or none: what the head's keys and values are multiplied by.
    lse
        [batch, heads_q, seq_q] of float32, contiguous: where the natural log-sum-exp goes.
    scale, causal, window, softcap
        As in `hipattn.attention`.
    alibi_slopes, sinks, bias, mask, score_mod, mask_mod
        As of `hipattn.kernels.flash_fwd.launch`, with the capacity as the number of keys.
    num_splits
        Among how many blocks a sequence's keys are split, up to `MAX_SPLITS`; 0: `best_splits`.
    workspace
        Where the parts go, if there are several: [workspace_size(batch * heads_q * seq_q, ...)] or more of float32,
        contiguous, at a multiple of 16 bytes, which takes a call more to clear the tickets.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        A tensor is on another device than the stream, or the sizes do not fit the chip.
    CompileError
        A modification of the scores does not compile.
    HipError
        The launch fails.
    """
    check_device(stream, q=q, k=k, v=v, out=out)
    others = (lse, alibi_slopes, sinks, bias, mask)
    p_q, p_k, p_v, p_out = q.pointer, k.pointer, v.pointer, out.pointer
    plan = _plan(
        stream.device,
        (scale, causal, window, softcap),
        num_splits,
        dtype_names(others),
        score_mod and score_mod.render("user_score_mod", 0, 0, params="FlashDecodeParams"),
        mask_mod and mask_mod.render("user_mask_mod", MAX_VALUES, MAX_VALUES, params="FlashDecodeParams"),
        lengths is not None,
        k_scales is not None,
        None if block_table is None else block_table.shape[1],
        q.dtype,
        (q.shape, k.shape, v.shape),
        (q.strides, k.strides, v.strides, out.strides),
        ((p_q | p_out) % ACCESS_BYTES, (p_k | p_v) % ACCESS_BYTES),
    )
    if plan is None:
        return
    p = plan.arguments.take()
    p.q, p.k, p.v, p.out = p_q, p_k, p_v, p_out
    for tensor in (q, k, v, out):
        tensor.buffer.used_on(stream)
    for name, given in (
        ("lengths", lengths),
        ("block_table", block_table),
        ("k_scales", k_scales),
        ("v_scales", v_scales),
        ("lse", lse),
    ):
        if given is not None:
            setattr(p, name, given.pointer)
            given.buffer.used_on(stream)
    if block_table is not None:
        p.table_batch = block_table.strides[0]
    held: Any = None  # until the launch
    if plan.options:
        held = fill(p, dict(zip(OPTIONS, others[1:], strict=True)), score_mod, mask_mod, stream)
    if p.splits > 1:
        memory, tickets = 4 * plan.parts * (v.shape[3] + 1), 4 * plan.tickets
        if isinstance(workspace, Workspace):
            p.parts, p.tickets = workspace.get(memory, tickets, stream)
        else:
            p.parts, p.tickets = workspace.pointer, workspace.pointer + memory
            workspace.buffer.clear(stream, workspace.offset * 4 + memory, tickets)
        p.part_lse = p.parts + 4 * plan.parts * v.shape[3]
    plan.kernel.launch(stream, plan.config, p)
    plan.arguments.give(p)
    del held


@dataclass(frozen=True)
class _Plan:
    """A launch of a shape: all but the addresses.

    Attributes
    ----------
    arguments : Template
    options : bool
        Whether the call has tensors beside those of the caches, out and lse.
    parts, tickets : int
        How many rows of parts, and how many tiles of rows, which have a ticket each.
    """

    kernel: Kernel
    config: LaunchConfig
    arguments: Template[FlashDecodeParams]
    options: bool
    parts: int
    tickets: int


@lru_cache(maxsize=4096)
def _plan(
    device: Device,
    formula: Formula,
    num_splits: int,
    others: tuple[str | None, ...],
    score_mod: str | None,
    mask_mod: str | None,
    lengths: bool,
    float8: bool,
    pages: int | None,
    dtype: np.dtype[Any],
    shapes: tuple[tuple[int, ...], ...],
    strides: tuple[tuple[int, ...], ...],
    addresses: tuple[int, int],
) -> _Plan | None:
    batch, seq_q, heads, head_dim = shapes[0]
    _, page_size, heads_kv, value_dim = shapes[2]
    capacity = page_size if pages is None else pages * page_size
    if not batch * seq_q * heads * value_dim:
        return None
    group = heads // heads_kv
    rows = seq_q * group
    problem = supports(device, dtype, head_dim, value_dim, rows, float8)
    if problem is not None:
        raise ArgumentError(problem)
    scores = batch, heads, seq_q, capacity
    splits = num_splits or best_splits(device, dtype, scores, heads_kv, head_dim, value_dim, formula, float8)
    tiles = choose_decode(device.arch, dtype.name, head_dim, value_dim, rows, float8, splits)
    assert tiles is not None
    scale, causal, window, softcap = formula
    formula = scale, causal and seq_q > 1, window, softcap  # one query stands at the last key
    features = Features.of(formula, others, score_mod, mask_mod)
    widths = (*(shape[3] for shape in shapes), value_dim)
    dtypes = (dtype, *[UINT8 if float8 else dtype] * 2, dtype)
    places = (addresses[0], addresses[1], addresses[1], addresses[0])
    vector = vector_width(
        *((at, t.itemsize, (*s[:3], n)) for at, t, s, n in zip(places, dtypes, strides, widths, strict=True))
    )
    wide = pages is None and is_wide(device, dtypes[1], tiles, strides[1][1], strides[2][1])
    row_tiles = -(-rows // tiles.block_m)
    blocks = batch * heads_kv * row_tiles
    form: dict[str, Any] = {"vector": vector, "lengths": lengths, "wide": wide, "split": splits > 1}
    form |= {"page_size": None if pages is None else page_size, "float8": float8}
    kernel = load(specialise(tiles, dtype.name, head_dim, value_dim, group, features, **form), device)
    options = any(others[1:]) or bool(score_mod or mask_mod)

    p = FlashDecodeParams()
    for name, steps in zip(("q", "k", "v", "out"), strides, strict=True):
        for axis, step in zip(("batch", "row", "head"), steps, strict=False):
            setattr(p, f"{name}_{axis}", step)
    p.heads, p.groups, p.seq_q, p.seq_k = heads, heads_kv, seq_q, capacity
    p.row_tiles, p.splits = row_tiles, splits
    set_divisor(p, "groups", heads_kv)
    set_divisor(p, "splits", splits)
    resolve(p, formula)
    config = LaunchConfig((blocks, splits), tiles.waves * device.wave_size, tiles.lds_bytes + FLAG_BYTES)
    return _Plan(kernel, config, Template(p), options, batch * heads * seq_q * splits, blocks)


def _visible(capacity: int, seq_q: int, formula: Formula) -> int:
    """Return how many keys the queries of a sequence see at most."""
    _, causal, (left, right), _ = formula
    if causal:
        right = 0
    return capacity if left is None or right is None else min(capacity, left + seq_q + right)


def best_splits(
    device: Device,
    dtype: np.dtype[Any],
    scores: tuple[int, int, int, int],
    heads_kv: int,
    head_dim: int,
    value_dim: int,
    formula: Formula,
    float8: bool = False,
) -> int:
    """Return among how many blocks a sequence's keys are best split.

    Parameters
    ----------
    device
        Which is to be kept busy.
    dtype, heads_kv, head_dim, value_dim
        Of the tensors, which the kernel can serve.
    scores
        (batch, heads_q, seq_q, capacity).
    formula
        Scale, causal, window, softcap.
    float8
        Whether keys and values are stored in 8 bits.
    """
    batch, heads, seq_q, capacity = scores
    rows = seq_q * heads // max(1, heads_kv)
    tiles = choose_decode(device.arch, dtype.name, head_dim, value_dim, rows, float8)
    assert tiles is not None
    blocks, keys = batch * heads_kv * -(-rows // tiles.block_m), _visible(capacity, seq_q, formula)
    key_bytes = (head_dim + value_dim) * (1 if float8 else dtype.itemsize)
    room = device.compute_units, resident(device.arch, tiles)
    return _splits(*room, blocks, min(rows, tiles.wave_rows), keys, tiles.keys_on_the_way, key_bytes)


@lru_cache(maxsize=4096)
def _splits(
    units: int, blocks_at_once: int, blocks: int, rows: int, keys: int, keys_at_once: int, key_bytes: int
) -> int:
    """Return among how many blocks to split `keys`, for the least time by a simple count.

    The unit of time is what a compute unit's share of the memory's bandwidth takes for the `keys_at_once` that a block
    has on their way. Fewer blocks than `_ON_THE_WAY` leave some of the bandwidth, and a compute unit takes little more
    than its share. Blocks for which there is no room, `blocks_at_once` to a compute unit, begin when others end, with
    the bandwidth to themselves; to begin and to end takes four units. To make one result of `rows` rows takes at most a
    unit for each four of them and twelve parts. (The numbers are for what was measured on an H100: of 76 shapes with
    heads of 64, 128 and 256, and e4m3, the choice takes 0.4 % longer than the best on average, and 5 % at most.)
    """
    count, enough = max(1, -(-keys // keys_at_once)), _ON_THE_WAY / (keys_at_once * key_bytes)

    def time(splits: int) -> float:
        full, rest = divmod(blocks * splits, units * blocks_at_once)
        walk = -(-count // splits)
        at_full = full * (max(enough, blocks_at_once) * walk + 4)
        at_last = max(enough, rest / units, 0.85 * -(-rest // units)) * walk + 4 if rest else 0.0
        merging = (1 + splits / 12) * -(-rows // 4) if splits > 1 else 0.0
        return at_full + at_last + merging

    best = min(range(1, min(count, MAX_SPLITS) + 1), key=time)
    return best if time(best) < 0.98 * time(1) else 1
