"""The tensors of a call beside q, k and v: ALiBi slopes, sinks, bias, mask, modifications, starts and lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hipattn.arguments import instance
from hipattn.attn.options import Plan
from hipattn.errors import ArgumentError
from hipattn.kernels import flash_decode
from hipattn.kernels.mods import MaskMod, ScoreMod
from hipattn.layout import broadcast
from hipattn.runtime.stream import Stream
from hipattn.tensor import BFLOAT16, BOOL, FLOAT32, INT32, UINT8, DeviceTensor, in_place

__all__ = ["Operand", "check", "found", "on_device", "on_host"]

_INT64 = np.dtype(np.int64)

Operand = DeviceTensor | npt.NDArray[Any] | ScoreMod | MaskMod | flash_decode.Workspace

_STARTS = ("cu_seqlens_q", "cu_seqlens_k")
_INTEGERS = (*_STARTS, "lengths", "block_table")
_PER_HEAD = ("alibi_slopes", "sinks")
_PER_KV_HEAD = ("k_scales", "v_scales")
_PER_SCORE = ("bias", "mask")
_MODS: dict[str, type[ScoreMod] | type[MaskMod]] = {"score_mod": ScoreMod, "mask_mod": MaskMod}
_MOD_TYPES = (ScoreMod, MaskMod)
_NO_TENSORS = (*_MOD_TYPES, flash_decode.Workspace)
_OF_HOST = (np.ndarray, list, tuple)  # made once: a union in each test would cost more than the test


_ACCEPTED = {  # but a bias
    "mask": (BOOL, UINT8),
    **dict.fromkeys((*_PER_HEAD, *_PER_KV_HEAD), (FLOAT32,)),
    **dict.fromkeys(_INTEGERS, (INT32, _INT64)),
    "workspace": (FLOAT32,),
}


def found(given: Mapping[str, Any], dtype: np.dtype[Any], stream: Stream | None) -> dict[str, Operand]:
    """Return the operands as tensors, or as NumPy arrays that are to be uploaded. Nothing is allocated.

    Parameters
    ----------
    given
        What the caller passed, by the argument's name, without None.
    dtype
        Of q.
    stream
        Where they are to be used; None for the host.

    Raises
    ------
    ArgumentError
        A dtype, type or device is not accepted.
    """
    operands: dict[str, Operand] = {}
    for name, value in given.items():
        if name in _MODS:
            operands[name] = instance(name, value, _MODS[name])
            continue
        if isinstance(value, flash_decode.Workspace):
            operands[name] = value
            continue
        if isinstance(value, _OF_HOST):
            if name in _PER_HEAD or name in _PER_KV_HEAD:  # 2.0 ** -np.arange(8) is float64
                value = _numbers(name, value, "fiu", "real numbers").astype(FLOAT32)
            elif name in _INTEGERS:
                value = _numbers(name, value, "iu", "integers").astype(_INT64)
        accepted = _ACCEPTED.get(name) or ((FLOAT32,) if dtype == FLOAT32 else (FLOAT32, dtype))
        operands[name] = in_place(value, stream=stream, argument=name, accepted=accepted)
    return operands


def _numbers(name: str, value: Any, kinds: str, what: str) -> npt.NDArray[Any]:
    """Return an array of the host whose dtype is of these kinds."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in kinds and not ("f" in kinds and array.dtype == BFLOAT16):  # its kind is V
        raise ArgumentError(f"{name} is {value!r}; it takes an array of {what}")
    return array


def check(plan: Plan, operands: Mapping[str, Operand]) -> None:
    """Check shapes and strides.

    Raises
    ------
    ArgumentError
        One does not fit; the message names the argument.
    """
    batch, heads, seq_q, seq_k = plan.scores
    for name, value in operands.items():
        if isinstance(value, _NO_TENSORS):
            continue
        if name in _PER_SCORE:
            if broadcast(value.shape, value.shape, plan.scores) is None:
                raise ArgumentError(f"{name} has shape {value.shape}; it takes one that broadcasts to {plan.scores}")
        elif name in _PER_HEAD:
            shapes = [(heads,), (batch, heads)] if name == "alibi_slopes" else [(heads,)]
            if value.shape not in shapes:
                raise ArgumentError(f"{name} has shape {value.shape}; it takes {' or '.join(map(str, shapes))}")
            _check_contiguous(name, value)
        elif name in _PER_KV_HEAD:
            _check_scales(plan, name, value)
        elif name == "lengths":
            _check_lengths(value, batch, seq_k)
        elif name == "workspace":
            _check_workspace(plan, value)
        elif name == "block_table":
            _check_table(plan, value, operands.get("lengths"))
        else:
            _check_starts(name, value, batch, seq_q if name == "cu_seqlens_q" else seq_k)


def _check_contiguous(name: str, value: DeviceTensor | npt.NDArray[Any]) -> None:
    if isinstance(value, DeviceTensor) and not value.is_contiguous:
        raise ArgumentError(f"{name} has strides {value.strides}; it takes a contiguous tensor")


def _check_starts(name: str, starts: DeviceTensor | npt.NDArray[Any], sequences: int, total: int) -> None:
    """Check where packed sequences start; of a tensor the values stay unknown."""
    if starts.shape != (sequences + 1,):
        raise ArgumentError(
            f"{name} has shape {starts.shape}; it takes one number more than sequences, as cu_seqlens_q and "
            f"cu_seqlens_k do: {(sequences + 1,)}"
        )
    _check_contiguous(name, starts)
    if total and not sequences:
        raise ArgumentError(f"{name} has no sequence; there are {total} rows")
    if isinstance(starts, np.ndarray) and (starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any()):
        raise ArgumentError(f"{name} is {starts}; it takes numbers that never fall, from 0 to {total}")


def _check_lengths(lengths: DeviceTensor | npt.NDArray[Any], batch: int, capacity: int) -> None:
    if lengths.shape != (batch,):
        raise ArgumentError(f"lengths has shape {lengths.shape}; it takes one number a sequence: {(batch,)}")
    _check_contiguous("lengths", lengths)
    if isinstance(lengths, np.ndarray) and not ((lengths >= 0) & (lengths <= capacity)).all():
        raise ArgumentError(f"lengths is {lengths}; a sequence has 0 to {capacity} keys")


def _check_scales(plan: Plan, name: str, scales: DeviceTensor | npt.NDArray[Any]) -> None:
    assert plan.cache is not None
    if scales.shape != (plan.cache.heads_kv,):
        raise ArgumentError(f"{name} has shape {scales.shape}; it takes one number a head: {(plan.cache.heads_kv,)}")
    _check_contiguous(name, scales)
    if isinstance(scales, np.ndarray) and not ((scales > 0) & np.isfinite(scales)).all():
        raise ArgumentError(f"{name} is {scales}; it takes positive, finite numbers")


def _check_workspace(plan: Plan, workspace: Any) -> None:
    assert plan.cache is not None
    if not isinstance(workspace, DeviceTensor):
        raise ArgumentError("workspace is in host memory; it takes a tensor on the device")
    size, splits = plan.cache.workspace, plan.cache.num_splits
    if workspace.ndim != 1 or workspace.shape[0] < size or not workspace.is_contiguous or workspace.pointer % 16:
        raise ArgumentError(
            f"workspace has shape {workspace.shape} and begins at a multiple of {math.gcd(workspace.pointer, 16)} "
            f"bytes; with {splits} splits it takes one dimension of {size} or more, at a multiple of 16 bytes"
        )


def _check_table(plan: Plan, table: DeviceTensor | npt.NDArray[Any], lengths: Any) -> None:
    """Check which pages hold the sequences' keys, as far as it is known which of them count."""
    assert plan.cache is not None
    batch, _, _, capacity = plan.scores
    pages, page_size = plan.cache.pages, plan.cache.page_size
    if table.shape[0] != batch:
        raise ArgumentError(f"block_table has shape {table.shape}; it takes a row for each of {batch} sequences")
    if isinstance(table, DeviceTensor):
        if table.shape[1] > 1 and table.strides[1] != 1:
            raise ArgumentError(f"block_table has strides {table.strides}; its last dimension must be contiguous")
        return
    if isinstance(lengths, DeviceTensor):
        return
    used = np.full(batch, capacity) if lengths is None else lengths
    counts = np.arange(table.shape[1]) * page_size < used[:, None]
    wrong = np.argwhere(counts & ((table < 0) | (table >= pages)))
    if wrong.size:
        row, column = wrong[0]
        raise ArgumentError(
            f"block_table[{row}, {column}] is {table[row, column]}; the pool has pages 0 to {pages - 1}"
        )


def on_device(plan: Plan, operands: Mapping[str, Operand], stream: Stream) -> dict[str, Any]:
    """Return the operands as the fused kernel takes them: uploaded, and broadcast."""
    ready: dict[str, Any] = {}
    for name, value in operands.items():
        if isinstance(value, _MOD_TYPES):
            ready[name] = value.on(stream)
            continue
        if isinstance(value, flash_decode.Workspace):
            ready[name] = value
            continue
        if isinstance(value, np.ndarray):
            value = DeviceTensor.from_numpy(value.astype(INT32) if name in _INTEGERS else value, stream=stream)
        ready[name] = value.broadcast_to(plan.scores) if name in _PER_SCORE else value
    return ready


def on_host(operands: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operands as the NumPy reference takes them.

    Raises
    ------
    ArgumentError
        A modification has no Python function.
    """
    ready: dict[str, Any] = {}
    for name, value in operands.items():
        if isinstance(value, _MOD_TYPES):
            ready[name] = value.on_host()
            continue
        if name == "workspace":
            continue
        array = value.numpy() if isinstance(value, DeviceTensor) else value
        ready[name] = array.astype(bool) if name == "mask" else array
    return ready
