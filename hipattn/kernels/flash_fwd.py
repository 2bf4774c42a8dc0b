"""Fused attention, forward. Kernel: ``kernels_src/flash_fwd.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels import block_mask
from hipattn.kernels.flash_options import OPTION_FIELDS, OPTIONS, Features, Formula, dtype_names, fill, is_wide, resolve
from hipattn.kernels.flash_tiles import FLAG_BYTES, Tiles, choose
from hipattn.kernels.mods import MAX_VALUES, MaskMod, ScoreMod
from hipattn.kernels.rows import ACCESS_BYTES, check_device, vector_width
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig, Template
from hipattn.runtime.stream import Stream
from hipattn.tensor import UINT8, DeviceTensor

__all__ = ["Features", "FlashFwdParams", "Prepared", "defaults", "launch", "prepare", "specialise", "supports"]

_CACHED_BYTES = 16 << 20  # of keys and values that blocks running at once are to share: half a small chip's last cache
_LEAST_BLOCKS = 4  # of a section, for a compute unit: twice what runs at once, so that the short ones fill gaps


class FlashFwdParams(Arguments):
    """What ``flash_fwd`` takes. Strides in elements."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse")),
        *((name, ctypes.c_void_p) for name in ("block_mask", "cu_seqlens_q", "cu_seqlens_k")),
        *((f"{tensor}_{axis}", ctypes.c_int64) for tensor in (*"qkv", "out") for axis in ("batch", "row", "head")),
        *((name, ctypes.c_int64) for name in ("lse_batch", "lse_head")),
        *((name, ctypes.c_int64) for name in ("block_mask_batch", "block_mask_head")),
        *((name, ctypes.c_int32) for name in ("batch", "heads", "heads_per_kv", "seq_q", "seq_k", "q_tiles")),
        ("section", ctypes.c_int32),
        *OPTION_FIELDS,
    )


def specialise(
    tiles: Tiles, dtype: str, head_dim: int, value_dim: int, features: Features, *, vector: int, wide: bool = False
) -> Specialisation:
    """Return the kernel for tensors of `dtype`.

    Parameters
    ----------
    tiles
        Of `choose`, for the chip.
    dtype, head_dim, value_dim
        Of the tensors.
    features
        What is compiled in.
    vector
        How many elements of q, k, v and out can be moved at once.
    wide
        Whether a tile of keys spans 2^31 bytes.
    """
    constants = {
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
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
        "BLOCK_MASK": bool(features.mask_mod) and not features.varlen,
        "VARLEN": features.varlen,
    }
    types = {"scalar": dtype, "bias_scalar": features.bias or "float32"}
    return Specialisation(
        "flash_fwd",
        "flash_fwd",
        FlashFwdParams,
        constants,
        types,
        includes=("key_rows.h", tiles.layer),
        prelude=features.prelude("FlashFwdParams"),
    )


def defaults(arch: str) -> Iterator[Specialisation]:
    """Return the kernels of aligned tensors, causal or not, for the most common head sizes."""
    for dtype in SCALARS:
        for head_dim in (64, 128):
            tiles = choose(arch, dtype, head_dim, head_dim)
            for causal in (False, True):
                if tiles is not None:
                    vector = 16 // np.dtype(dtype if dtype == "float32" else "float16").itemsize
                    yield specialise(tiles, dtype, head_dim, head_dim, Features(right=causal), vector=vector)


def supports(device: Device, dtype: np.dtype[Any], head_dim: int, value_dim: int) -> str | None:
    """Return why the kernel cannot serve tensors of these sizes on the device; None if it can."""
    if head_dim < 1 or value_dim < 1:
        return f"head_dim is {head_dim} and value head_dim {value_dim}; the kernel takes 1 or more"
    if choose(device.arch, dtype.name, head_dim, value_dim) is None:
        return f"head_dim {head_dim}, value head_dim {value_dim} in {dtype.name} does not fit {device.arch}"
    return None


def launch(
    q: DeviceTensor,
    k: DeviceTensor,
    v: DeviceTensor,
    out: DeviceTensor,
    *,
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
    cu_seqlens_q: DeviceTensor | None = None,
    cu_seqlens_k: DeviceTensor | None = None,
    stream: Stream,
) -> None:
    """Compute attention, by the formula of `hipattn.attn.reference`.

    Parameters
    ----------
    q, out
        [batch, seq_q, heads_q, head_dim or value_dim], any strides with a contiguous last dimension.
    k, v
        [batch, seq_k, heads_kv, head_dim or value_dim], likewise, of q's dtype.
    lse
        [batch, heads_q, seq_q] of float32, contiguous: where the natural log-sum-exp goes.
    scale, causal, window, softcap
        As in `hipattn.attention`.
    alibi_slopes
        [heads_q] or [batch, heads_q] of float32, contiguous.
    sinks
        [heads_q] of float32, contiguous.
    bias, mask
        [batch, heads_q, seq_q, seq_k], any strides, 0 where broadcast; bias of float32 or q's dtype, mask of bool.
    score_mod, mask_mod
        A `ScoreMod` and a `MaskMod`.
    cu_seqlens_q, cu_seqlens_k
        [sequences + 1] of int32: q, k and v are packed, with a batch of 1.
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
    others = (lse, alibi_slopes, sinks, bias, mask, cu_seqlens_q, cu_seqlens_k)
    prepared = prepare(
        stream.device,
        (scale, causal, window, softcap),
        q.dtype,
        (q.shape, k.shape, v.shape),
        (q.strides, k.strides, v.strides, out.strides),
        (q.pointer | k.pointer | v.pointer | out.pointer) % ACCESS_BYTES,
        dtype_names(others),
        score_mod and score_mod.render("user_score_mod", 0, 0),
        mask_mod and mask_mod.render("user_mask_mod", MAX_VALUES, MAX_VALUES),
        0 if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1,
    )
    if prepared is None:
        return
    p = prepared.addressed(q, k, v, out, lse, stream)
    held: Any = None  # until the launch
    if prepared.options:
        tensors = dict(zip((*OPTIONS, "cu_seqlens_q", "cu_seqlens_k"), others[1:], strict=True))
        held = fill(p, tensors, score_mod, mask_mod, stream)
        if mask_mod is not None and prepared.block_mask is not None:
            held["block_mask"] = _fill_block_mask(p, mask_mod.on(stream), prepared.block_mask, stream)
    prepared.run(p, stream)
    del held


def _fill_block_mask(p: FlashFwdParams, mask_mod: MaskMod, sizes: tuple[int, ...], stream: Stream) -> DeviceTensor:
    """Write what a mask leaves of each tile to the arguments, and return the tensor."""
    tiles = _block_mask(mask_mod, sizes, stream)
    check_device(stream, block_mask=tiles)
    p.block_mask = tiles.pointer
    p.block_mask_batch, p.block_mask_head = (
        step if size > 1 else 0 for size, step in zip(tiles.shape[:2], tiles.strides[:2], strict=True)
    )
    tiles.buffer.used_on(stream)
    return tiles


def _block_mask(mask_mod: MaskMod, sizes: tuple[int, ...], stream: Stream) -> DeviceTensor:
    """Return what a mask leaves of each tile. A mask without tensors does not change, and keeps it."""
    batch, heads, seq_q, seq_k, block_m, block_n = sizes
    # One mask for all batch entries, or heads, that the expression does not tell apart.
    batch, heads = (size if mask_mod.uses(name) else 1 for name, size in (("b", batch), ("h", heads)))
    kept = mask_mod.block_masks.get((stream, sizes))
    if kept is None or kept.buffer.closed:
        kept = DeviceTensor.empty((batch, heads, -(-seq_q // block_m), -(-seq_k // block_n)), UINT8, stream=stream)
        block_mask.launch(mask_mod, batch, heads, seq_q, seq_k, block_m, block_n, kept, stream=stream)
        if not mask_mod.tensors:
            for oldest in list(mask_mod.block_masks)[: 1 - _KEPT_BLOCK_MASKS]:
                mask_mod.block_masks.pop(oldest, None)  # another thread may have done it
            mask_mod.block_masks[stream, sizes] = kept
    return kept


_KEPT_BLOCK_MASKS = 4


@dataclass(frozen=True, slots=True)
class Prepared:
    """A launch for tensors of certain shapes, strides and alignment: all but the addresses. Made by `prepare`.

    Attributes
    ----------
    arguments : Template
    options : bool
        Whether the call has tensors beside q, k, v, out and lse.
    block_mask : tuple of int or None
        What `block_mask.launch` takes.
    """

    kernel: Kernel
    config: LaunchConfig
    arguments: Template[FlashFwdParams]
    options: bool
    block_mask: tuple[int, ...] | None

    def addressed(
        self,
        q: DeviceTensor,
        k: DeviceTensor,
        v: DeviceTensor,
        out: DeviceTensor,
        lse: DeviceTensor | None,
        stream: Stream,
    ) -> FlashFwdParams:
        """Return arguments with the addresses of tensors that it was prepared for, and note that `stream` uses them."""
        p = self.arguments.take()
        p.q, p.k, p.v, p.out = q.pointer, k.pointer, v.pointer, out.pointer
        for tensor in (q, k, v, out):
            tensor.buffer.used_on(stream)
        if lse is not None:
            p.lse, p.lse_batch, p.lse_head = lse.pointer, *lse.strides[:2]
            lse.buffer.used_on(stream)
        return p

    def run(self, p: FlashFwdParams, stream: Stream) -> None:
        """Launch, and take the arguments back."""
        self.kernel.launch(stream, self.config, p)
        self.arguments.give(p)


@lru_cache(maxsize=4096)
def prepare(
    device: Device,
    formula: Formula,
    dtype: np.dtype[Any],
    shapes: tuple[tuple[int, ...], ...],
    strides: tuple[tuple[int, ...], ...],
    address: int,
    others: tuple[str | None, ...],
    score_mod: str | None = None,
    mask_mod: str | None = None,
    sequences: int = 0,
) -> Prepared | None:
    """Return the launch for tensors of certain shapes; None where there is nothing to compute.

    Parameters
    ----------
    device
        Where it runs.
    formula
        Scale, causal, window, softcap.
    dtype, shapes
        Of q, k and v, as `launch` takes them.
    strides
        Of q, k, v and out.
    address
        Their addresses modulo `ACCESS_BYTES`, or-ed.
    others
        Names of the dtypes of lse, alibi_slopes, sinks, bias, mask, cu_seqlens_q and cu_seqlens_k; None without.
    score_mod, mask_mod
        Their functions' source.
    sequences
        Of a packed batch; 0 if it is none.

    Raises
    ------
    ArgumentError
        The sizes do not fit the chip.
    CompileError
        A modification of the scores does not compile.
    """
    batch, seq_q, heads, head_dim = shapes[0]
    _, seq_k, heads_kv, value_dim = shapes[2]
    if not batch * seq_q * heads * value_dim:
        return None
    tiles = choose(device.arch, dtype.name, head_dim, value_dim)
    if tiles is None:
        raise ArgumentError(supports(device, dtype, head_dim, value_dim) or "")
    features = Features.of(formula, others[:5], score_mod, mask_mod, varlen=sequences > 0)
    widths = (*(shape[3] for shape in shapes), value_dim)
    vector = vector_width(
        *((address, dtype.itemsize, (*s[:3], width)) for s, width in zip(strides, widths, strict=True))
    )
    wide = is_wide(device, dtype, tiles, strides[1][1], strides[2][1])
    kernel = load(specialise(tiles, dtype.name, head_dim, value_dim, features, vector=vector, wide=wide), device)

    p = FlashFwdParams()
    for name, steps in zip(("q", "k", "v", "out"), strides, strict=True):
        for axis, step in zip(("batch", "row", "head"), steps, strict=False):
            setattr(p, f"{name}_{axis}", step)
    p.batch, p.heads, p.heads_per_kv = sequences or batch, heads, heads // heads_kv
    p.seq_q, p.seq_k = seq_q, seq_k
    key_bytes = (head_dim + value_dim) * dtype.itemsize
    blocks = _divide(p, tiles, key_bytes, device.compute_units, varlen=sequences > 0)
    resolve(p, formula)
    config = LaunchConfig(blocks, tiles.waves * device.wave_size, tiles.lds_bytes + FLAG_BYTES)
    options = any(others[1:]) or bool(score_mod or mask_mod)
    block_sizes = (batch, heads, seq_q, seq_k, tiles.block_m, tiles.block_n)
    return Prepared(kernel, config, Template(p), options, block_sizes if mask_mod and not sequences else None)


def _divide(p: FlashFwdParams, tiles: Tiles, key_bytes: int, compute_units: int, *, varlen: bool) -> int:
    """Write how the call is divided among blocks to the arguments, and return how many there are.

    Parameters
    ----------
    p
        With the sizes.
    tiles
        Of a block.
    key_bytes
        Of a key and its value.
    compute_units
        Of the device.
    varlen
        Whether the batch is packed: `seq_q` and `seq_k` are then the sums of its sequences' lengths.
    """
    if varlen:  # each sequence may end in a part of a tile
        sequences, all_heads = p.batch, p.heads
        p.q_tiles = p.seq_q // tiles.block_m + sequences
    else:
        sequences, all_heads = 1, p.batch * p.heads
        p.q_tiles = -(-p.seq_q // tiles.block_m)
    head_bytes = p.seq_k * key_bytes // (p.heads_per_kv * sequences)
    least = -(-_LEAST_BLOCKS * compute_units // max(1, p.q_tiles))
    p.section = max(1, min(all_heads, max(least, _CACHED_BYTES // max(1, head_bytes))))
    return int(p.q_tiles * all_heads)
