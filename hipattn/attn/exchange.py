"""Arrays of any library in, and the results back to where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hipattn.attn import execute, operands
from hipattn.attn.kv_cache import KVCache
from hipattn.attn.options import Plan
from hipattn.attn.paged_cache import PagedKVCache
from hipattn.errors import ArgumentError
from hipattn.layout import row_major
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOATS, UINT8, DeviceTensor, as_dtype, host_like, in_place, like

__all__ = ["exchanged", "planned"]

_CACHES = KVCache, PagedKVCache


def planned(
    make: Any,
    device: Device | None,
    kind: str | int | tuple[int | None, int],
    qkv: tuple[Any, Any, Any],
    options: tuple[Any, ...],
) -> Plan:
    """Plan a call over tensors, or over NumPy arrays as they will be on the device.

    Parameters
    ----------
    make
        `plan`, `plan_varlen` or `plan_decode`.
    device
        Where it is computed; None for the host.
    kind
        What `make` takes second: the layout, the number of sequences, or the caches' form.
    qkv
        The arrays.
    options
        The fields of `Options`.
    """
    q, k, v = qkv
    facts: tuple[Any, ...]
    if type(q) is type(k) is type(v) is DeviceTensor:
        facts = q.dtype, q.shape, q.strides, k.dtype, k.shape, k.strides, v.dtype, v.shape, v.strides
    else:
        facts = *_facts(q), *_facts(k), *_facts(v)
    try:
        call: Plan = make(device, kind, *facts, *options)
    except TypeError:  # an argument that cannot be hashed is none that is accepted
        call = make.__wrapped__(device, kind, *facts, *options)
    return call


def _facts(array: DeviceTensor | npt.NDArray[Any]) -> tuple[Any, ...]:
    if isinstance(array, DeviceTensor):
        return array.dtype, array.shape, array.strides
    return as_dtype(array.dtype, accepted=(*FLOATS, UINT8)), array.shape, row_major(array.shape)


def exchanged(
    qkv: tuple[Any, Any, Any],
    out: Any,
    others: Mapping[str, Any],
    make: Callable[[Device | None, Any, Mapping[str, Any]], Plan],
    *,
    return_lse: bool,
    on_host: bool,
    stream: Stream | None,
    stored: Collection[np.dtype[Any]] = FLOATS,
) -> Any:
    """Compute a call over arrays of any library: check all, then upload what is on the host, and give back.

    Parameters
    ----------
    qkv, out, others
        What the caller passed; the others by name.
    make
        Plans the call, from the device, q, k, v and the others.
    return_lse
        Whether the caller wants the LSE.
    on_host
        Whether it is computed on the host, which needs no device.
    stream
        The caller's, or None.
    stored
        Dtypes that k and v may be of.
    """
    q = qkv[0]
    arrays: Any = tuple(
        _borrowed(name, array, stream, FLOATS if name == "q" else stored)
        for name, array in zip("qkv", qkv, strict=True)
    )
    if out is not None and not hasattr(out, "dtype"):
        raise ArgumentError(f"out is {type(out).__name__}; it takes an array")
    target = None if out is None else in_place(out, stream=stream, argument="out")
    host = isinstance(arrays[0], np.ndarray)
    if target is not None and isinstance(target, np.ndarray) != host:
        places = ("in host memory", "on the device")
        raise ArgumentError(f"out is {places[host]}; q is {places[not host]}, and out must be where q is")
    devices = [array.device for array in arrays if isinstance(array, DeviceTensor)]
    if stream is None and (devices or not on_host):
        stream = (devices[0] if devices else Device(0)).default_stream
    beside = operands.found(others, arrays[0].dtype, stream)
    call = make(stream.device if stream else None, arrays, beside)
    operands.check(call, beside)
    if target is not None:
        execute.check_out(call, target, arrays, beside)
    result: Any
    lse: Any
    if call.method == "reference" and host:
        result, lse = execute.on_host(call, arrays, beside)
    else:
        assert stream is not None
        tensors: Any = tuple(DeviceTensor.asarray(array, stream=stream) for array in arrays)
        result, lse = execute.on_device(
            call,
            tensors,
            target if isinstance(target, DeviceTensor) else None,
            beside,
            return_lse=return_lse,
            stream=stream,
        )
        if host:
            result, lse = (None if x is None else x.numpy(stream=stream) for x in (result, lse))
    if isinstance(target, np.ndarray):
        target[...] = result
    give = host_like if host else like
    answer = give(result, q) if out is None else out
    return (answer, give(lse, q)) if return_lse else answer


def _borrowed(name: str, array: Any, stream: Stream | None, accepted: Collection[np.dtype[Any]]) -> Any:
    """Return what `in_place` does; its errors tell of caches, and of how e4m3 is passed."""
    if isinstance(array, _CACHES):
        kind = type(array).__name__
        raise ArgumentError(f"{name} is a {kind}; it takes an array, and attention_decode takes a cache as its k")
    if UINT8 in accepted and "float8_e4m3" in str(getattr(array, "dtype", "")):
        raise ArgumentError(f"{name} is {array.dtype}; e4m3 is passed as its bits, {name}.view of uint8, with scales")
    return in_place(array, stream=stream, argument=name, accepted=accepted)
