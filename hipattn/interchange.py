"""Arrays of other libraries: what they are, where they are, and how to use their memory in place."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from hipattn import dlpack
from hipattn.dlpack import Memory
from hipattn.errors import ArgumentError
from hipattn.layout import row_major
from hipattn.runtime import bindings
from hipattn.runtime.buffer import DeviceBuffer
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream

__all__ = ["borrow", "check_device"]

_NULL_STREAM = {dlpack.CUDA: 1, dlpack.ROCM: 0}  # what DLPack calls it

Dtypes = Collection[np.dtype[Any]]
_FLOAT32 = np.dtype(np.float32)


def borrow(
    obj: Any, stream: Stream | None, argument: str, accepted: Dtypes
) -> tuple[DeviceBuffer, Memory] | npt.NDArray[Any]:
    """Return the memory of another library's array, or a NumPy array if it is not in device memory.

    Parameters
    ----------
    obj
        An array with ``__dlpack__`` or ``__cuda_array_interface__``, or anything that NumPy takes as one.
    stream
        Where the memory is to be used; it waits for what the other library does with it. Default: the
        device's default stream.
    argument
        A name for messages.
    accepted
        The dtypes that are accepted. A NumPy array may have another one, for the caller to convert or refuse.

    Raises
    ------
    ArgumentError
        The array is on another device or another platform's, or its dtype or strides are not accepted.
    """
    if obj is None or isinstance(obj, str | bytes | dict):
        raise ArgumentError(f"{argument} is {'None' if obj is None else type(obj).__name__}; it takes an array")
    if isinstance(obj, np.ma.MaskedArray):
        raise ArgumentError(f"{argument} is a masked array; it takes one without a mask (its .filled())")
    if getattr(obj, "is_neg", bool)():  # torch's lazy minus sign, which DLPack does not carry
        raise ArgumentError(f"{argument} is a tensor with torch's negative bit; it takes its resolve_neg()")
    obj = _without_gradient(obj)
    if hasattr(obj, "__dlpack_device__") and not isinstance(obj, np.ndarray):
        return _from_dlpack(obj, stream, argument, accepted)
    if hasattr(obj, "__cuda_array_interface__"):
        return _from_interface(obj, stream, argument, accepted)
    try:
        host = np.asarray(obj)
    except ValueError as error:
        raise ArgumentError(f"{argument} is no array: {error}") from error
    if host.dtype.hasobject:
        raise ArgumentError(f"{argument} is {type(obj).__name__}; it takes an array of numbers")
    if not hasattr(obj, "dtype") and host.dtype in (np.float64, np.int64, np.bool_) and _FLOAT32 in accepted:
        host = host.astype(_FLOAT32)  # Python's own numbers
    return host


def check_device(argument: str, index: int, stream: Stream | None) -> None:
    """Refuse an array on device `index` that is to be used in a stream of another.

    Raises
    ------
    ArgumentError
        They differ, or there is no such device.
    """
    if stream is not None:
        if stream.device.index != index:
            raise ArgumentError(f"{argument} is on device {index}; the stream is of device {stream.device.index}")
    elif not 0 <= index < Device.count():
        raise ArgumentError(f"{argument} is on device {index}; accepted: 0 to {Device.count() - 1}")


def _without_gradient(obj: Any) -> Any:
    """Return what torch lets be read of its tensor where it records no gradients: the same memory."""
    if getattr(obj, "requires_grad", False) is True and type(obj).__module__.partition(".")[0] == "torch":
        return obj if sys.modules["torch"].is_grad_enabled() else obj.detach()
    return obj


def _from_dlpack(
    obj: Any, stream: Stream | None, argument: str, accepted: Dtypes
) -> tuple[DeviceBuffer, Memory] | npt.NDArray[Any]:
    try:
        kind, index = (int(number) for number in obj.__dlpack_device__())
    except (BufferError, RuntimeError, ValueError) as error:  # torch's, of a device without memory
        raise ArgumentError(f"{argument}, a {type(obj).__name__}, cannot be exported: {error}") from error
    platform = bindings.platform()
    if kind in dlpack.HOST:
        memory = dlpack.from_capsule(_capsule(obj, argument), argument, accepted)
        device = _device_of(memory.pointer)
        if device is None:
            return memory.as_numpy()
        # A simulated device's memory, which its owner uses from the host.
        check_device(argument, device.index, stream)
        return _wrap(memory, stream or device.default_stream, sync_to_close=True), memory
    if platform.simulated or kind != dlpack.DEVICE_TYPES[platform.name]:
        devices = {"amd": "ROCM devices and ", "nvidia": "CUDA devices and "}
        raise ArgumentError(
            f"{argument} is on {dlpack.device_name(kind, index)}; accepted on the {platform.name} platform: "
            f"{devices.get(platform.name, '')}host memory"
        )
    check_device(argument, index, stream)
    stream = stream or Device(index).default_stream
    capsule = _capsule(obj, argument, stream=stream.handle or _NULL_STREAM[kind])
    memory = dlpack.from_capsule(capsule, argument, accepted)
    return _wrap(memory, stream), memory


def _capsule(obj: Any, argument: str, **stream: int) -> Any:
    try:
        try:
            return obj.__dlpack__(max_version=(1, 0), **stream)
        except TypeError:  # a producer older than DLPack 1.0
            return obj.__dlpack__(**stream)
    except (BufferError, RuntimeError, ValueError) as error:
        raise ArgumentError(f"{argument}, a {type(obj).__name__}, cannot be exported: {error}") from error


def _from_interface(obj: Any, stream: Stream | None, argument: str, accepted: Dtypes) -> tuple[DeviceBuffer, Memory]:
    interface = obj.__cuda_array_interface__
    if interface["version"] not in (2, 3) or interface.get("mask") is not None:
        mask = "no mask" if interface.get("mask") is None else "a mask"
        raise ArgumentError(
            f"{argument} has the CUDA array interface, version {interface['version']}, with {mask}; "
            "accepted: version 2 or 3 with no mask"
        )
    typestrs = {dtype.str: dtype for dtype in accepted if dtype.kind != "V"}  # it has no word for bfloat16
    dtype = typestrs.get(interface["typestr"])
    if dtype is None:
        raise ArgumentError(f"{argument} is {interface['typestr']}; accepted: {', '.join(typestrs)}")
    shape, steps = tuple(interface["shape"]), interface.get("strides")
    if any(step < 0 or step % dtype.itemsize for step in steps or ()):
        raise ArgumentError(
            f"{argument} has strides {steps} in bytes; accepted: multiples of {dtype.itemsize}, none negative"
        )
    strides = row_major(shape) if steps is None else tuple(step // dtype.itemsize for step in steps)
    pointer = interface["data"][0] or 0
    if 0 in shape:
        device: Device | None = stream.device if stream else Device(0)
    else:
        device = _device_of(pointer)
    if device is None:
        platform = bindings.platform().name
        raise ArgumentError(f"{argument} is at {pointer:#x}; accepted: device memory of the {platform} platform")
    check_device(argument, device.index, stream)
    stream = stream or device.default_stream
    owner = _stream_of(interface.get("stream"), device, argument) or stream
    if owner.handle == stream.handle:
        owner = stream
    else:
        stream.wait(owner)
    memory = Memory(pointer, shape, strides, dtype, (dlpack.DEVICE_TYPES[bindings.platform().name], device.index), obj)
    return _wrap(memory, owner), memory


def _stream_of(handle: int | None, device: Device, argument: str) -> Stream | None:
    """Return the stream that the CUDA array interface names: 1 the null stream, 2 the thread's own."""
    if handle is None:
        return None
    if handle < 1:
        raise ArgumentError(f"{argument} has stream {handle}; the CUDA array interface takes None, or 1 and above")
    return Stream.from_handle(0 if handle == 1 else handle, device)


def _device_of(pointer: int) -> Device | None:
    """Return the device whose memory an address is in, None for memory of the host."""
    if not pointer:
        return None
    hip = bindings.hip
    attributes = hip.hipPointerAttribute_t()
    status, attributes = hip.hipPointerGetAttributes(pointer)
    if status:
        hip.hipGetLastError()  # an expected refusal is nobody's error
        return None
    return Device(attributes.device) if attributes.type == hip.hipMemoryType.hipMemoryTypeDevice else None


def _wrap(memory: Memory, stream: Stream, *, sync_to_close: bool = False) -> DeviceBuffer:
    return DeviceBuffer.wrap(
        memory.pointer, memory.nbytes, stream=stream, keep=memory.owner, sync_to_close=sync_to_close
    )
