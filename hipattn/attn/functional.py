"""attention(): the function that most users need."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from hipattn.attn.staged import HipAttentionKernels, check_shapes
from hipattn.errors import ArgumentError
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, DeviceTensor

__all__ = ["attention", "free_scratch"]

_per_thread = threading.local()


def _kernels(device: Device) -> HipAttentionKernels:
    made: dict[int, HipAttentionKernels] = _per_thread.__dict__.setdefault("kernels", {})
    if device.index not in made:
        made[device.index] = HipAttentionKernels(device)
    return made[device.index]


def free_scratch() -> None:
    """Free the memory that `attention` keeps, for the calling thread, between its calls: the last one's scores."""
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
        A NumPy array is uploaded; an array in device memory (a `DeviceTensor`, or anything with DLPack or
        ``__cuda_array_interface__``, as of torch or CuPy) is used in place.
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
        Where to write the result. Default: new memory.
    return_lse
        Also return the natural log-sum-exp of the scaled scores, −inf for a query that sees no key.
    stream
        Where the work goes. Default: the device's default stream. For arrays on the device the call returns before
        the work is done; NumPy results are complete.

    Returns
    -------
    out
        [batch, seq_q, heads_q, value_dim] of q's dtype, as NumPy if q was NumPy, as a `DeviceTensor` otherwise.
    lse
        With `return_lse`: [batch, heads_q, seq_q], float32.

    Raises
    ------
    ArgumentError
        An argument does not fit; nothing was allocated or launched for the computation.
    HipError, CompileError
        The computation fails.
    """
    device = stream.device if stream else Device(0)
    stream = stream or device.default_stream
    host = all(isinstance(array, np.ndarray) for array in (q, k, v))
    if host:
        _check_host(q, k, v, layout, out)
    tensors = [DeviceTensor.asarray(a, stream=stream, argument=n) for n, a in (("q", q), ("k", k), ("v", v))]
    shape = check_shapes(*tensors, layout=layout)
    lse = DeviceTensor.empty(shape[:3], FLOAT32, stream=stream) if return_lse else None
    target = None
    if out is not None and not host:
        target = DeviceTensor.asarray(out, stream=stream, argument="out")
    result: Any = _kernels(device).compute_attention(
        *tensors, causal=causal, scale=scale, layout=layout, out=target, lse=lse, stream=stream
    )
    log_sum: Any = lse
    if host:
        computed = result.numpy(stream=stream)
        log_sum = lse.numpy(stream=stream) if lse is not None else None
        if out is None:
            result = computed
        else:
            out[...] = computed
            result = out
    elif out is not None:
        result = out
    return (result, log_sum) if return_lse else result


def _check_host(q: Any, k: Any, v: Any, layout: str, out: Any) -> None:
    """Check before anything is uploaded."""
    *_, value_dim = check_shapes(q, k, v, layout=layout)
    if out is not None:
        if not isinstance(out, np.ndarray):
            raise ArgumentError(f"out is {type(out).__name__}; with NumPy arrays it takes a NumPy array")
        wanted = (*q.shape[:3], value_dim)
        if out.shape != wanted or out.dtype != q.dtype:
            raise ArgumentError(f"out is {out.dtype} {out.shape}; it takes {q.dtype} {wanted}")
