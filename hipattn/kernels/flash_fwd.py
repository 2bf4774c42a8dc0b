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
from hipattn.kernels.flash_tiles import FLAG_BYTES, Tiles, choose
from hipattn.kernels.rows import check_device, vector_width
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["Features", "FlashFwdParams", "defaults", "launch", "specialise"]

USER_VALUES = 16  # tensors, floats and integers each, of a call's score_mod and mask_mod together


class FlashFwdParams(Arguments):
    """What ``flash_fwd`` takes. Strides in elements."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse", "slopes", "sinks", "bias", "mask")),
        *((name, ctypes.c_void_p) for name in ("block_mask", "cu_seqlens_q", "cu_seqlens_k")),
        *((f"{tensor}_{axis}", ctypes.c_int64) for tensor in "qkv" for axis in ("batch", "row", "head")),
        *((f"out_{axis}", ctypes.c_int64) for axis in ("batch", "row", "head")),
        *((name, ctypes.c_int64) for name in ("lse_batch", "lse_head", "slopes_batch")),
        *(
            (f"{tensor}_{axis}", ctypes.c_int64)
            for tensor in ("bias", "mask")
            for axis in ("batch", "head", "row", "column")
        ),
        *((name, ctypes.c_int32) for name in ("batch", "heads", "heads_per_kv", "seq_q", "seq_k", "q_tiles")),
        *((name, ctypes.c_int32) for name in ("left", "right", "negate")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "softcap_inverse")),
        ("user_tensors", ctypes.c_void_p * USER_VALUES),
        ("user_floats", ctypes.c_float * USER_VALUES),
        ("user_ints", ctypes.c_int32 * USER_VALUES),
    )


@dataclass(frozen=True)
class Features:
    """What a call asks of the kernel beyond the product and the softmax: each is compiled in or not.

    Attributes
    ----------
    left, right : bool
        Keys are bounded on the left (window) or right (causal, window) of a query's own position.
    scaled : bool
        The scale is applied before all else. Otherwise it is part of the exponent, which a scale of 0 cannot be.
    bias : str
        The dtype of the bias; "" without one.
    score_mod, mask_mod : str
        Their rendered functions; "" without one.
    """

    left: bool = False
    right: bool = False
    scaled: bool = False
    softcap: bool = False
    alibi: bool = False
    sinks: bool = False
    bias: str = ""
    mask: bool = False
    score_mod: str = ""
    mask_mod: str = ""
    lse: bool = False
    varlen: bool = False


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
        Whether a tile of keys spans 2^32 bytes.
    """
    constants = {
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "WAVES": tiles.waves,
        "WAVE_ROWS": tiles.wave_rows,
        "BLOCK_N": tiles.block_n,
        "MATRIX_ROWS": tiles.matrix_rows,
        "MIN_WAVES": tiles.min_waves,
        "LDS_BYTES": tiles.lds_bytes + FLAG_BYTES,
        "VECTOR": vector,
        "WIDE": wide,
        "BOUND_LEFT": features.left,
        "BOUND_RIGHT": features.right,
        "SCALED": features.scaled,
        "SOFTCAP": features.softcap,
        "ALIBI": features.alibi,
        "SINKS": features.sinks,
        "BIAS": bool(features.bias),
        "MASK": features.mask,
        "SCORE_MOD": bool(features.score_mod),
        "MASK_MOD": bool(features.mask_mod),
        "LSE": features.lse,
        "VARLEN": features.varlen,
    }
    types = {"scalar": dtype, "bias_scalar": features.bias or "float32"}
    prelude = (features.score_mod or _NO_SCORE_MOD) + (features.mask_mod or _NO_MASK_MOD)
    return Specialisation(
        "flash_fwd", "flash_fwd", FlashFwdParams, constants, types, includes=(tiles.layer,), prelude=prelude
    )


# `if constexpr` outside a template still looks names up.
_NO_SCORE_MOD = "__device__ float user_score_mod(float, int, int, int, int, const FlashFwdParams&);\n"
_NO_MASK_MOD = "__device__ bool user_mask_mod(int, int, int, int, const FlashFwdParams&);\n"


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
    score_mod: Any = None,
    mask_mod: Any = None,
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
    left, right = window
    if causal:
        right = 0 if right is None else min(right, 0)
    features = Features(
        left=left is not None,
        right=right is not None,
        scaled=scale == 0,
        softcap=softcap is not None,
        alibi=alibi_slopes is not None,
        sinks=sinks is not None,
        bias=bias.dtype.name if bias is not None else "",
        mask=mask is not None,
        score_mod=score_mod.render("user_score_mod", 0, 0) if score_mod is not None else "",
        mask_mod=mask_mod.render("user_mask_mod", 8, 8) if mask_mod is not None else "",
        lse=lse is not None,
        varlen=cu_seqlens_q is not None,
    )
    sequences = 1 if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    plan = _plan(stream.device, features, sequences, *_facts(q), *_facts(k), *_facts(v), *_facts(out))
    if plan is None:
        return
    p = FlashFwdParams()
    p.q, p.k, p.v, p.out = q.pointer, k.pointer, v.pointer, out.pointer
    for name, value in plan.sizes:
        setattr(p, name, value)
    p.scale, p.negate = abs(scale), scale < 0
    p.left, p.right = left or 0, right or 0
    if softcap is not None:
        p.softcap, p.softcap_inverse = softcap, 1 / softcap
    if lse is not None:
        p.lse, p.lse_batch, p.lse_head = lse.pointer, lse.strides[0], lse.strides[1]
    used = [q, k, v, out]
    used += [x for x in (lse, alibi_slopes, sinks, bias, mask, cu_seqlens_q, cu_seqlens_k) if x is not None]
    if alibi_slopes is not None:
        p.slopes, p.slopes_batch = alibi_slopes.pointer, 0 if alibi_slopes.ndim == 1 else alibi_slopes.strides[0]
    if sinks is not None:
        p.sinks = sinks.pointer
    for name, tensor in (("bias", bias), ("mask", mask)):
        if tensor is not None:
            setattr(p, name, tensor.pointer)
            for axis, stride in zip(("batch", "head", "row", "column"), tensor.strides, strict=True):
                setattr(p, f"{name}_{axis}", stride)
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        p.cu_seqlens_q, p.cu_seqlens_k = cu_seqlens_q.pointer, cu_seqlens_k.pointer
    for tensor in used:
        tensor.buffer.used_on(stream)
    plan.kernel.launch(stream, plan.config, p)


@dataclass(frozen=True)
class _Plan:
    kernel: Kernel
    config: LaunchConfig
    sizes: tuple[tuple[str, int], ...]


def _facts(x: DeviceTensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.strides, x.pointer % 16


@lru_cache(maxsize=4096)
def _plan(device: Device, features: Features, sequences: int, *facts: Any) -> _Plan | None:
    dtypes, shapes, strides, addresses = (facts[n::4] for n in range(4))
    batch, seq_q, heads, head_dim = shapes[0]
    seq_k, heads_kv, value_dim = shapes[2][1], shapes[2][2], shapes[2][3]
    if not batch * seq_q * heads * value_dim:
        return None
    dtype = dtypes[0]
    tiles = choose(device.arch, dtype.name, head_dim, value_dim)
    if tiles is None:
        raise ArgumentError(supports(device, dtype, head_dim, value_dim) or "")
    vector = vector_width(
        *((a, dtype.itemsize, (*s[:3], n[3])) for a, s, n in zip(addresses, strides, shapes, strict=True))
    )
    wide = max(strides[1][1], strides[2][1]) * tiles.block_n * dtype.itemsize >= 2**31
    kernel = load(specialise(tiles, dtype.name, head_dim, value_dim, features, vector=vector, wide=wide), device)
    q_tiles = -(-seq_q // tiles.block_m)
    if features.varlen:
        q_tiles, batch = seq_q // tiles.block_m + sequences, sequences
    sizes = {
        f"{name}_{axis}": step
        for name, steps in zip(("q", "k", "v", "out"), strides, strict=True)
        for axis, step in zip(("batch", "row", "head"), steps, strict=False)
    }
    sizes |= {"batch": batch, "heads": heads, "heads_per_kv": heads // heads_kv}
    sizes |= {"seq_q": seq_q, "seq_k": seq_k, "q_tiles": q_tiles}
    grid = q_tiles * heads * (1 if features.varlen else batch)
    config = LaunchConfig(grid, tiles.waves * device.wave_size, tiles.lds_bytes + FLAG_BYTES)
    return _Plan(kernel, config, tuple(sizes.items()))
