"""attention(): the function that most users need."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from hipattn.arguments import boolean, instance, number
from hipattn.attn.staged import HipAttentionKernels, check_shapes
from hipattn.errors import ArgumentError
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, DeviceTensor, host_like, in_place, like

__all__ = ["attention", "free_scratch"]

_per_thread = threading.local()


def _kernels(device: Device) -> HipAttentionKernels:
    made: dict[int, HipAttentionKernels] = _per_thread.__dict__.setdefault("kernels", {})
    if device.index not in made:
        made[device.index] = HipAttentionKernels(device)
    return made[device.index]


def free_scratch() -> None:
    """Free the memory that `attention` keeps, for the calling thread, between its calls: the last ones' scores.

    `Device.trim` then gives it back to the system.
    """
    for kernels in _per_thread.__dict__.get("kernels", {}).values():
        kernels.close()


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    scale: float | None = None,
    layout: str = "bshd",
    out: Any = None,
    return_lse: bool = False,
    stream: Stream | None = None,
) -> Any:
    """Compute softmax(scale · q @ kᵀ) @ v for each head.

    Parameters
    ----------
    q
        [batch, seq_q, heads_q, head_dim]; float32, float16 or bfloat16; any strides with a contiguous last dimension.
        An array in host memory (NumPy, torch) is uploaded; one in device memory (a `DeviceTensor`, or anything with
        DLPack or ``__cuda_array_interface__``, as of torch or CuPy) is used in place.
    k, v
        [batch, seq_k, heads_kv, head_dim or value_dim] of q's dtype. heads_q is a multiple of heads_kv: query head h
        reads head h · heads_kv / heads_q.
    causal
        Query i sees key j iff j ≤ i + seq_k − seq_q: the last query is aligned with the last key. A query that sees
        no key yields zeros.
    scale
        Default: 1/√head_dim.
    layout
        "bshd", or "bhsd" for heads before the sequence; of q, k, v and out.
    out
        Where to write the result: an array where q is. Default: new memory.
    return_lse
        Also return the natural log-sum-exp of the scaled scores, −inf for a query that sees no key.
    stream
        Where the work goes. Default: the default stream of the arrays' device. For arrays on the device the call
        returns before the work is done; results in host memory are complete.

    Returns
    -------
    out
        [batch, seq_q, heads_q, value_dim] of q's dtype, where q is. In host memory: of torch for torch, otherwise of
        NumPy. On the device: of torch or CuPy for theirs, otherwise a `DeviceTensor`. Gradients are not computed:
        tensors that require them are refused.
    lse
        With `return_lse`: [batch, heads_q, seq_q], float32, likewise.

    Raises
    ------
    ArgumentError
        An argument does not fit; nothing was allocated or launched for the computation.
    ClosedError
        A tensor's memory was freed.
    PlatformError
        No platform can be used on this machine.
    HipError, CompileError
        The computation fails.
    """
    causal = boolean("causal", causal)
    scale = None if scale is None else number("scale", scale)
    if stream is not None:
        instance("stream", stream, Stream, "; Stream.from_handle wraps another library's")
    found = {n: in_place(a, stream=stream, argument=n) for n, a in (("q", q), ("k", k), ("v", v))}
    *sizes, value_dim = check_shapes(*found.values(), layout=layout)
    if out is not None and not hasattr(out, "dtype"):
        raise ArgumentError(f"out is {type(out).__name__}; it takes an array")
    target = None if out is None else in_place(out, stream=stream, argument="out")
    host = isinstance(found["q"], np.ndarray)
    if target is not None:
        _check_out(target, (*found["q"].shape[:3], value_dim), found["q"].dtype, host)
    if stream is None:
        devices = [array.device for array in found.values() if isinstance(array, DeviceTensor)]
        stream = (devices[0] if devices else Device(0)).default_stream

    tensors = [DeviceTensor.asarray(array, stream=stream, argument=name) for name, array in found.items()]
    lse = DeviceTensor.empty(tuple(sizes[:3]), FLOAT32, stream=stream) if return_lse else None
    result = _kernels(stream.device).compute_attention(
        *tensors,
        causal=causal,
        scale=scale,
        layout=layout,
        out=target if isinstance(target, DeviceTensor) else None,
        lse=lse,
        stream=stream,
    )
    if host:
        computed = result.numpy(stream=stream)
        if isinstance(target, np.ndarray):
            target[...] = computed
        answer = host_like(computed, q) if out is None else out
        return (answer, host_like(lse.numpy(stream=stream), q)) if lse is not None else answer
    answer = like(result, q) if out is None else out
    return (answer, like(lse, q)) if lse is not None else answer


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], host: bool) -> None:
    """Check before anything is uploaded."""
    if isinstance(out, np.ndarray) != host:
        places = ("in host memory", "on the device")
        raise ArgumentError(f"out is {places[host]}; q is {places[not host]}, and out must be where q is")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ArgumentError("out is read-only; it takes an array that can be written")
    if out.shape != shape or out.dtype != dtype:
        raise ArgumentError(f"out is {out.dtype} {out.shape}; it takes {dtype} {shape}")
