"""Run a call that was checked: fused, in stages, or with NumPy."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hipattn.attn import operands, reference
from hipattn.attn.fallback import FAILURES, Fallback
from hipattn.attn.operands import Operand
from hipattn.attn.options import Plan, check_result
from hipattn.attn.staged import HipAttentionKernels
from hipattn.errors import ArgumentError, ClosedError, CompileError
from hipattn.kernels import flash_decode, flash_fwd
from hipattn.kernels.rows import ACCESS_BYTES
from hipattn.layout import overlaps
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, DeviceTensor

__all__ = ["check_out", "fallback", "free_scratch", "on_device", "on_host"]

fallback = Fallback()
"""Of the fused kernels; the stages have their own."""

_per_thread = threading.local()


def _kernels(device: Device) -> HipAttentionKernels:
    made: dict[int, HipAttentionKernels] = _per_thread.__dict__.setdefault("kernels", {})
    if device.index not in made:
        made[device.index] = HipAttentionKernels(device)
    return made[device.index]


def _workspace(device: Device) -> flash_decode.Workspace:
    made: dict[int, flash_decode.Workspace] = _per_thread.__dict__.setdefault("workspaces", {})
    return made.get(device.index) or made.setdefault(device.index, flash_decode.Workspace())


def free_scratch() -> None:
    """Free the memory that is kept, for the calling thread, between calls.

    That is the scores of `attention`'s staged method, and the parts that `attention_decode` makes one result of.
    `Device.trim` then gives it back to the system.
    """
    for kept in ("kernels", "workspaces"):
        for holder in _per_thread.__dict__.get(kept, {}).values():
            holder.close()


def on_device(
    plan: Plan,
    qkv: tuple[DeviceTensor, DeviceTensor, DeviceTensor],
    out: DeviceTensor | None,
    others: Mapping[str, Operand],
    *,
    return_lse: bool,
    stream: Stream,
) -> tuple[DeviceTensor, DeviceTensor | None]:
    """Compute a call over tensors of the stream's device.

    Parameters
    ----------
    plan
        The call.
    qkv, out
        In the plan's layout; without `out` it is allocated.
    others
        The operands beside, as `operands.found` returns them.
    return_lse
        Whether to compute the LSE.
    stream
        Where the work goes.

    Returns
    -------
    out : DeviceTensor
    lse : DeviceTensor or None
        Of float32.

    Raises
    ------
    ArgumentError
        A tensor is on another device, or `out` or an operand does not fit. Nothing was allocated.
    ClosedError
        A tensor's memory was freed.
    """
    device = stream.device
    q, k, v = qkv
    for name, tensor in zip(("q", "k", "v", "out"), (q, k, v, out)):  # noqa: B905  strict takes longer
        if tensor is None:
            continue
        buffer = tensor.buffer
        if buffer.device is not device:
            raise ArgumentError(f"{name} is on device {buffer.device.index}; the stream is on {device.index}")
        if buffer.closed:
            raise ClosedError(f"{name} is closed: its buffer of {buffer.nbytes} bytes")
    if out is not None:
        check_out(plan, out, qkv, others)
    if others:
        operands.check(plan, others)
        others = operands.on_device(plan, others, stream)
    if out is None:
        out = DeviceTensor.empty(plan.out, plan.dtype, stream=stream)
    lse = DeviceTensor.empty(plan.lse, FLOAT32, stream=stream) if return_lse else None
    if 0 in plan.out and (lse is None or 0 in plan.lse):
        return out, lse
    if plan.method == "flash":
        try:
            _launch(plan, q, k, v, out, lse, others, stream)
        except FAILURES as error:
            _recover("flash_fwd" if plan.cache is None else "flash_decode", error, others)
            _fill(out, lse, on_host(plan, qkv, others), stream)
    elif plan.method == "staged":
        options: Any = {name: plan.formula[name] for name in ("causal", "scale")}
        _kernels(device).run_checked(q, k, v, out, **options, layout=plan.layout, lse=lse, stream=stream)
    else:
        _fill(out, lse, on_host(plan, qkv, others), stream)
    return out, lse


def on_host(plan: Plan, qkv: Sequence[Any], others: Mapping[str, Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Compute a call with NumPy in float64, over tensors and arrays of the host, and round the result once.

    Raises
    ------
    ArgumentError
        A modification has no Python function.
    """
    options: Any = {**plan.formula, **operands.on_host(others)}  # first: it may refuse
    q, k, v = (array.numpy() if isinstance(array, DeviceTensor) else array for array in qkv)
    if plan.cache is not None:
        scales = options.pop("k_scales", None), options.pop("v_scales", None)
        if plan.cache.float8 is not None:
            k, v = (
                x.view(plan.cache.float8).astype(np.float64) * scale[:, None]
                for x, scale in zip((k, v), scales, strict=True)
            )
        out, lse = reference.attention_decode(q, k, v, **options, return_lse=True)
    elif plan.layout == "shd":
        out, lse = reference.attention_varlen(q, k, v, **options, return_lse=True)
    else:
        out, lse = reference.attention(q, k, v, layout=plan.layout, **options, return_lse=True)
    with np.errstate(invalid="ignore"):
        return out.astype(plan.dtype), lse


def check_out(
    plan: Plan, out: DeviceTensor | npt.NDArray[Any], qkv: tuple[Any, Any, Any], others: Mapping[str, Any]
) -> None:
    """Check where the result of a call over `qkv` and `others` is to be written: a tensor, or a NumPy array.

    Raises
    ------
    ArgumentError
        Its shape, dtype or strides do not fit, or it shares memory with what is read.
    """
    if isinstance(out, np.ndarray):
        if out.shape != plan.out or out.dtype != plan.dtype:
            raise ArgumentError(f"out is {out.dtype} {out.shape}; it takes {plan.dtype} {plan.out}")
        if not out.flags.writeable:
            raise ArgumentError("out is read-only; it takes an array that can be written")
        if overlaps((*out.shape, out.itemsize), (*map(abs, out.strides), 1)):
            raise ArgumentError(f"out has shape {out.shape} and strides {out.strides} in bytes; its elements overlap")
        return
    check_result("out", out.dtype, out.shape, out.strides, plan.out, plan.dtype)
    for name, tensor in (*zip("qkv", qkv, strict=True), *others.items()):
        if isinstance(tensor, DeviceTensor) and out.shares_memory(tensor):
            raise ArgumentError(f"out shares memory with {name}, which is read while out is written")


def _launch(
    plan: Plan,
    q: DeviceTensor,
    k: DeviceTensor,
    v: DeviceTensor,
    out: DeviceTensor,
    lse: DeviceTensor | None,
    others: Mapping[str, Any],
    stream: Stream,
) -> None:
    """Launch the fused kernel, which takes [batch, seq, heads, dim]."""
    if plan.cache is None and not others:
        addresses = q.pointer | k.pointer | v.pointer | out.pointer
        prepared = _prepared(plan, stream.device, out.strides, addresses % ACCESS_BYTES, lse is not None)
        if prepared is not None:  # there is something to compute
            prepared.run(prepared.addressed(q, k, v, out, lse, stream), stream)
        return
    options: Any = {**plan.formula, **others}
    if plan.cache is not None:
        if options.get("workspace") is None:
            options["workspace"] = _workspace(stream.device)
        flash_decode.launch(q, k, v, out, lse=lse, num_splits=plan.cache.num_splits, stream=stream, **options)
        return
    if plan.layout == "bhsd":
        q, k, v, out = [tensor.transpose(0, 2, 1, 3) for tensor in (q, k, v, out)]
    elif plan.layout == "shd":
        q, k, v, out = [tensor.broadcast_to((1, *tensor.shape)) for tensor in (q, k, v, out)]
        lse = None if lse is None else lse.broadcast_to((1, *lse.shape))
    flash_fwd.launch(q, k, v, out, lse=lse, stream=stream, **options)


@lru_cache(maxsize=4096)
def _prepared(
    plan: Plan, device: Device, out_strides: tuple[int, ...], address: int, return_lse: bool
) -> flash_fwd.Prepared | None:
    """Return the launch of a call without other operands."""
    axes = (0, 1, 2, 3) if plan.layout == "bshd" else (0, 2, 1, 3)
    shapes = [facts.shape for facts in plan.qkv]
    strides = [*(facts.strides for facts in plan.qkv), out_strides]
    others = (FLOAT32.name if return_lse else None, *[None] * 6)
    turned = (tuple(tuple(sizes[axis] for axis in axes) for sizes in each) for each in (shapes, strides))
    return flash_fwd.prepare(device, plan.numbers, plan.dtype, *turned, address, others)


def _recover(name: str, error: Exception, others: Mapping[str, Any]) -> None:
    """Return if the call is to be computed with NumPy; an expression that does not compile is the caller's error."""
    if isinstance(error, CompileError) and not {"score_mod", "mask_mod"}.isdisjoint(others):
        raise error
    try:
        operands.on_host({name: others[name] for name in ("score_mod", "mask_mod") if name in others})
    except ArgumentError:
        raise error from None  # NumPy could not
    fallback.recover(name, error)


def _fill(
    out: DeviceTensor,
    lse: DeviceTensor | None,
    computed: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    stream: Stream,
) -> None:
    out.copy_from(computed[0], stream=stream)
    if lse is not None:
        lse.copy_from(computed[1], stream=stream)
