"""Arrays in device memory: a shape, strides and a dtype over a `DeviceBuffer`."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hipattn import dlpack
from hipattn.errors import ArgumentError
from hipattn.interchange import borrow, check_device
from hipattn.layout import broadcast, is_row_major, permuted, row_major, span
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.buffer import DeviceBuffer
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream

__all__ = [
    "BFLOAT16",
    "BOOL",
    "DTYPES",
    "FLOAT16",
    "FLOAT32",
    "FLOATS",
    "INT32",
    "UINT8",
    "DeviceTensor",
    "as_dtype",
    "host_like",
    "in_place",
    "like",
]

FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
INT32 = np.dtype(np.int32)
UINT8 = np.dtype(np.uint8)
BOOL = np.dtype(np.bool_)

FLOATS = (FLOAT32, FLOAT16, BFLOAT16)  # what is computed with
DTYPES = (*FLOATS, INT32, UINT8, BOOL)  # what a tensor can hold: indices and masks too


def as_dtype(
    dtype: npt.DTypeLike, argument: str = "dtype", accepted: Collection[np.dtype[Any]] = FLOATS
) -> np.dtype[Any]:
    """Return an accepted dtype, by default float32, float16 or bfloat16, as NumPy's (bfloat16 from ml_dtypes).

    Raises
    ------
    ArgumentError
        It is another dtype.
    """
    if isinstance(dtype, np.dtype) and dtype in accepted:
        return dtype  # NumPy takes microseconds to tell a dtype's name
    try:
        name = dtype if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    by_name = {each.name: each for each in accepted}
    if name not in by_name:
        raise ArgumentError(f"{argument} is {name}; accepted: {', '.join(by_name)}")
    return by_name[name]


class DeviceTensor:
    """A view of device memory, which it keeps alive.

    Make one with `empty`, `from_numpy` or `asarray`; slices, `transpose` and `reshape` are views of the same
    memory. It is exchanged with other libraries through DLPack and ``__cuda_array_interface__``.

    Parameters
    ----------
    buffer
        The memory.
    shape
        Sizes, 0 or more each.
    dtype
        float32, float16 or bfloat16; int32, uint8 or bool for indices and masks.
    strides
        In elements, 0 or more each. Default: row-major.
    offset
        Of the first element, in elements from the buffer's start.

    Attributes
    ----------
    buffer : DeviceBuffer
    shape, strides : tuple of int
        Strides are in elements.
    dtype : numpy.dtype

    Raises
    ------
    ArgumentError
        The view reaches outside the buffer, or a size, stride or dtype is not accepted.
    """

    __slots__ = ("__weakref__", "buffer", "dtype", "offset", "shape", "strides")

    def __init__(
        self,
        buffer: DeviceBuffer,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        strides: tuple[int, ...] | None = None,
        offset: int = 0,
    ) -> None:
        self.dtype = as_dtype(dtype, accepted=DTYPES)
        self.shape = _sizes(shape)
        self.strides = row_major(self.shape) if strides is None else _sizes(strides, "strides")
        (self.offset,) = _sizes((offset,), "offset")
        if len(self.strides) != len(self.shape):
            raise ArgumentError(f"strides are {self.strides}; shape {self.shape} takes {len(self.shape)} of them")
        end = (offset + span(self.shape, self.strides)) * self.dtype.itemsize
        if 0 not in self.shape and end > buffer.nbytes:
            raise ArgumentError(
                f"shape {self.shape} with strides {self.strides} at {offset} ends at byte {end} "
                f"of a buffer of {buffer.nbytes} bytes"
            )
        self.buffer = buffer

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: npt.DTypeLike = FLOAT32, *, stream: Stream | None = None
    ) -> DeviceTensor:
        """Allocate a row-major tensor. Its values are undefined.

        Raises
        ------
        ArgumentError
            A size is negative, or the dtype is not accepted.
        HipError
            The device has too little memory.
        """
        kind = as_dtype(dtype, accepted=DTYPES)
        self = cls.__new__(cls)
        self.dtype, self.shape, self.offset = kind, _sizes(shape), 0
        self.strides = row_major(self.shape)
        self.buffer = DeviceBuffer(math.prod(self.shape) * kind.itemsize, stream)
        return self

    @classmethod
    def from_numpy(cls, array: npt.ArrayLike, *, stream: Stream | None = None) -> DeviceTensor:
        """Copy an array to the device, row-major. Synchronises `stream`: the array may be changed at once.

        Raises
        ------
        ArgumentError
            The dtype is not accepted.
        HipError
            The device has too little memory.
        """
        host = np.asarray(array)
        kind = as_dtype(host.dtype, "array's dtype", DTYPES)
        host = np.asarray(host, kind, order="C")  # row-major, in this machine's byte order
        tensor = cls.empty(host.shape, kind, stream=stream)
        tensor._upload(host, stream or tensor.buffer.stream)
        return tensor

    @classmethod
    def asarray(cls, obj: Any, *, stream: Stream | None = None, argument: str = "array") -> DeviceTensor:
        """Return an array of any library as a tensor: in place if it is in this platform's device memory.

        Parameters
        ----------
        obj
            A `DeviceTensor` (returned as it is); an array on the device with ``__dlpack__`` or
            ``__cuda_array_interface__`` (a view, which keeps it alive); an array in host memory, a list or a
            number (copied to the device; Python's own numbers become float32).
        stream
            Where the tensor is to be used: it waits for what the other library does with the array. Default:
            the device's default stream.
        argument
            A name for messages.

        Raises
        ------
        ArgumentError
            The array is on another device or another platform's, or its dtype or strides are not accepted.
        HipError
            The device has too little memory.
        """
        found = in_place(obj, stream=stream, argument=argument, accepted=DTYPES)
        return found if isinstance(found, DeviceTensor) else cls.from_numpy(found, stream=stream)

    def _upload(self, host: npt.NDArray[Any], stream: Stream) -> None:
        if host.nbytes:
            self.buffer.used_on(stream)
            _copy_and_wait(self.pointer, host.ctypes.data, host.nbytes, "HostToDevice", stream)

    def copy_from(self, array: npt.ArrayLike, *, stream: Stream | None = None) -> None:
        """Overwrite the elements with those of a host array of the same shape. Synchronises `stream`.

        Elements between a strided view's own are left as they are.

        Raises
        ------
        ArgumentError
            The array has another shape.
        """
        host = np.asarray(array)
        if host.shape != self.shape:
            raise ArgumentError(f"array has shape {host.shape}; the tensor takes {self.shape}")
        where = stream or self.buffer.stream
        if self.is_contiguous:
            self._upload(np.asarray(host, self.dtype, order="C"), where)
            return
        around = self._view((span(self.shape, self.strides),), (1,), self.offset)
        flat = around.numpy(stream=stream)
        steps = tuple(step * self.dtype.itemsize for step in self.strides)
        np.lib.stride_tricks.as_strided(flat, self.shape, steps)[...] = host
        around._upload(flat, where)

    def fill(self, value: float, *, stream: Stream) -> None:
        """Set all elements of a contiguous tensor of float32 or int32, as work of `stream`.

        Raises
        ------
        ArgumentError
            The tensor is of another dtype, or not contiguous.
        """
        if self.dtype not in (FLOAT32, INT32) or not self.is_contiguous:
            raise ArgumentError(
                f"the tensor is {self.dtype.name} with strides {self.strides}; it takes float32 or int32, contiguous"
            )
        if self.size:
            self.buffer.used_on(stream)
            pattern = int(np.array(value, self.dtype).view(np.int32))
            result = bindings.hip.hipMemsetD32Async(self.pointer, pattern, self.size, stream.native)
            check(result, "hipMemsetD32Async", elements=self.size)

    def numpy(self, *, stream: Stream | None = None) -> npt.NDArray[Any]:
        """Copy the tensor to the host. Synchronises: with `stream`, or with all streams that use the memory.

        Raises
        ------
        HipError
            Work that came before failed.
        """
        stream = stream or self.buffer.join()
        host = np.empty(span(self.shape, self.strides), self.dtype)
        if host.size:
            _copy_and_wait(host.ctypes.data, self.pointer, host.nbytes, "DeviceToHost", stream)
        if self.is_contiguous:
            return host.reshape(self.shape)
        steps = tuple(step * self.dtype.itemsize for step in self.strides)
        return np.array(np.lib.stride_tricks.as_strided(host, self.shape, steps), order="C")

    def _copy(self) -> DeviceTensor:
        """Copy to new memory with the same strides, after all work that uses this one."""
        stream = self.buffer.join()
        nbytes = span(self.shape, self.strides) * self.dtype.itemsize
        copy = DeviceTensor(DeviceBuffer(nbytes, stream), self.shape, self.dtype, self.strides)
        if nbytes:
            kind = bindings.hip.hipMemcpyKind.hipMemcpyDeviceToDevice
            result = bindings.hip.hipMemcpyAsync(copy.pointer, self.pointer, nbytes, kind, stream.native)
            check(result, "hipMemcpyAsync", kind="device to device", bytes=nbytes)
            self.buffer.used_on(stream)
        return copy

    @property
    def pointer(self) -> int:
        """Device address of the first element.

        Raises
        ------
        ClosedError
            The buffer was closed.
        """
        pointer = self.buffer.pointer
        return pointer + self.offset * self.dtype.itemsize if self.offset else pointer

    @property
    def native(self) -> Any:
        """`pointer` for a library's call: hip-python's object, if there is one."""
        return self.pointer if self.offset else self.buffer.native

    @property
    def device(self) -> Device:
        """The device that holds the memory."""
        return self.buffer.device

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.size * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie row-major without gaps."""
        return is_row_major(self.shape, self.strides)

    def _view(self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> DeviceTensor:
        view = object.__new__(DeviceTensor)
        view.buffer, view.dtype = self.buffer, self.dtype
        view.shape, view.strides, view.offset = shape, strides, offset
        return view

    def __getitem__(self, index: Any) -> DeviceTensor:
        """Return a view: integers and slices with positive steps, as NumPy's basic indexing."""
        items = index if isinstance(index, tuple) else (index,)
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items = items[:at] + (slice(None),) * (self.ndim - len(items) + 1) + items[at + 1 :]
        if len(items) > self.ndim:
            raise ArgumentError(f"index has {len(items)} items; the tensor has {self.ndim} dimensions")
        shape, strides, offset = [], [], self.offset
        for axis, (size, step) in enumerate(zip(self.shape, self.strides, strict=True)):
            item = items[axis] if axis < len(items) else slice(None)
            if isinstance(item, slice):
                start, stop, stride = item.indices(size)
                if stride < 0:
                    raise ArgumentError(f"index {item} has a negative step; accepted: positive steps")
                shape.append(max(0, -(-(stop - start) // stride)))
                strides.append(step * stride)
                offset += start * step if shape[-1] else 0
                continue
            if isinstance(item, bool) or not hasattr(item, "__index__"):
                raise ArgumentError(f"index {item!r} is not accepted; accepted: integers, slices, ...")
            at = operator.index(item)
            if not -size <= at < size:
                raise IndexError(f"index {at} is out of range for axis {axis} of size {size}")
            offset += (at % size) * step
        return self._view(tuple(shape), tuple(strides), offset)

    def shares_memory(self, other: DeviceTensor) -> bool:
        """Return whether an element of this tensor is one of the other's too. In doubt it is."""
        if self.buffer is not other.buffer and self.buffer._owned and other.buffer._owned:
            return False
        first, second = sorted(
            (tensor.pointer, span(tensor.shape, tensor.strides) * tensor.dtype.itemsize) for tensor in (self, other)
        )
        if first[0] + first[1] <= second[0]:
            return False
        try:
            return bool(np.shares_memory(_addresses(self), _addresses(other), max_work=10_000))  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True

    def transpose(self, *axes: int) -> DeviceTensor:
        """Return a view with the axes in this order.

        Raises
        ------
        ArgumentError
            `axes` is no permutation.
        """
        turned = permuted(self.shape, self.strides, axes)
        if turned is None:
            raise ArgumentError(f"axes is {axes}; it takes a permutation of {tuple(range(self.ndim))}")
        return self._view(*turned, self.offset)

    def broadcast_to(self, shape: tuple[int, ...]) -> DeviceTensor:
        """Return a view of this shape in which dimensions of size 1, and new ones in front, repeat: their stride is 0.

        Raises
        ------
        ArgumentError
            A dimension has another size, neither 1 nor what is asked for.
        """
        strides = broadcast(self.shape, self.strides, shape)
        if strides is None:
            raise ArgumentError(f"shape {self.shape} cannot be broadcast to {shape}")
        return self._view(shape, strides, self.offset)

    def reshape(self, *shape: int) -> DeviceTensor:
        """Return a view with another shape; the tensor must be contiguous.

        Raises
        ------
        ArgumentError
            The tensor is not contiguous, or the sizes' product differs.
        """
        sizes = _sizes(shape)
        if math.prod(sizes) != self.size or not self.is_contiguous:
            state = "contiguous" if self.is_contiguous else "not contiguous"
            raise ArgumentError(f"shape {self.shape} ({state}) cannot be viewed as {sizes}")
        return self._view(sizes, row_major(sizes), self.offset)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface, which ROCm builds of CuPy and Numba read too."""
        if self.dtype == BFLOAT16:
            raise AttributeError("__cuda_array_interface__ cannot express bfloat16; use DLPack")
        if self.device.simulated:
            raise AttributeError("__cuda_array_interface__ is for memory of a GPU; this one is simulated")
        return {
            "shape": self.shape,
            "strides": tuple(step * self.dtype.itemsize for step in self.strides),
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "stream": self.buffer.join().handle or 1,  # 1 is the interface's name of the null stream
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's device type and index. A simulated device's memory is the CPU's."""
        return dlpack.DEVICE_TYPES[bindings.platform().name], 0 if self.device.simulated else self.device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export the tensor as a DLPack capsule, which keeps its memory alive unless the buffer is closed.

        Parameters
        ----------
        stream
            Where the consumer will use it: a ``hipStream_t``, made to wait for the work that uses the memory;
            None or 0 (CUDA: None or 1) for the null stream; -1 for no synchronisation. On a simulated device:
            None, for which the host waits for the work, or -1.
        max_version
            The newest version that the consumer understands.
        dl_device
            Where the consumer wants it: nowhere but where it is.
        copy
            True: export a copy.

        Raises
        ------
        BufferError
            `dl_device` is another device.
        ArgumentError
            `stream` is not accepted.
        """
        device = self.__dlpack_device__()
        if dl_device is not None and tuple(map(int, dl_device)) != device:
            wanted, there = (dlpack.device_name(*map(int, where)) for where in (dl_device, device))
            raise BufferError(f"dl_device is {wanted}; the tensor can only be exported on {there}, where it is")
        refused, accepted = {
            dlpack.CPU: (range(sys.maxsize), "None or -1"),
            dlpack.CUDA: ((0,), "None, -1 or a CUstream (1 is the null stream; 0 is ambiguous)"),
            dlpack.ROCM: ((1, 2), "None, -1, 0 or a hipStream_t (1 and 2 are CUDA's)"),
        }[device[0]]
        if stream is not None and (stream < -1 or stream in refused):
            raise ArgumentError(f"stream is {stream}; accepted: {accepted}")
        tensor = self._copy() if copy else self
        if stream != -1:
            own = tensor.buffer.join()
            handle = 0 if stream in (None, 1) else stream
            if self.device.simulated:
                own.sync()
            elif own.handle != handle:
                consumer = Stream.from_handle(handle, self.device)
                consumer.wait(own)
                tensor.buffer.used_on(consumer)
        memory = dlpack.Memory(tensor.pointer, tensor.shape, tensor.strides, tensor.dtype, device, tensor)
        return dlpack.to_capsule(memory, max_version, copied=bool(copy))

    def __array__(self, *_: Any, **__: Any) -> npt.NDArray[Any]:
        """Refuse: NumPy would wait for the device without a word."""
        raise ArgumentError("a DeviceTensor is not a NumPy array; numpy() copies it to the host")

    def __repr__(self) -> str:
        return f"<DeviceTensor {self.shape} {self.dtype.name} on device {self.device.index}>"


def _sizes(values: tuple[int, ...], argument: str = "shape") -> tuple[int, ...]:
    if not isinstance(values, tuple | list):
        raise ArgumentError(f"{argument} is {values!r}; it takes a tuple of integers")
    if all([type(value) is int and value >= 0 for value in values]):  # noqa: C419  a list is faster
        return tuple(values)
    if not all(isinstance(value, int | np.integer) and value >= 0 for value in values):
        raise ArgumentError(f"{argument} is {values!r}; it takes integers of 0 or more")
    return tuple(int(value) for value in values)


def in_place(
    obj: Any, *, stream: Stream | None, argument: str, accepted: Collection[np.dtype[Any]] = FLOATS
) -> DeviceTensor | npt.NDArray[Any]:
    """Return an array of any library without copying: a tensor if it is on the device, else a NumPy array.

    Parameters and errors are those of `DeviceTensor.asarray`; its dtype is one of those accepted.
    """
    if isinstance(obj, DeviceTensor):
        check_device(argument, obj.device.index, stream)
        as_dtype(obj.dtype, argument, accepted)
        return obj
    found = borrow(obj, stream, argument, accepted)
    if isinstance(found, tuple):
        buffer, memory = found
        as_dtype(memory.dtype, argument, [dtype for dtype in DTYPES if dtype in accepted])
        if memory.pointer % memory.dtype.itemsize:
            raise ArgumentError(f"{argument} is at {memory.pointer:#x}; accepted: multiples of {memory.dtype.itemsize}")
        return DeviceTensor(buffer, memory.shape, memory.dtype, memory.strides)
    as_dtype(found.dtype, argument, accepted)
    return found


def like(tensor: DeviceTensor, model: Any) -> Any:
    """Return a tensor on the device as an array of the library that `model` is of, without copying.

    torch and CuPy are known; for other libraries it stays a `DeviceTensor`.
    """
    library = type(model).__module__.partition(".")[0]
    return sys.modules[library].from_dlpack(tensor) if library in ("torch", "cupy") else tensor


def host_like(array: npt.NDArray[Any], model: Any) -> Any:
    """Return a NumPy array as an array of the library that `model` is of, without copying: torch, or NumPy."""
    if type(model).__module__.partition(".")[0] != "torch":
        return array
    torch = sys.modules["torch"]
    if array.dtype == BFLOAT16:  # which torch does not take from NumPy
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _copy_and_wait(to: int, source: int, nbytes: int, kind: str, stream: Stream) -> None:
    """Copy between host and device. Whatever fails, the host's memory is not in use any more at the end."""
    native = stream.native
    which = getattr(bindings.hip.hipMemcpyKind, f"hipMemcpy{kind}")
    result = bindings.hip.hipMemcpyAsync(to, source, nbytes, which, native)
    check(result, "hipMemcpyAsync", kind=kind, bytes=nbytes)
    check(bindings.hip.hipStreamSynchronize(native), "hipStreamSynchronize", after=f"copying {nbytes} bytes")


class _Addresses:
    """Where a tensor's elements are, for NumPy, which must not read them."""

    def __init__(self, tensor: DeviceTensor) -> None:
        size = tensor.dtype.itemsize
        strides = tuple(step * size for step in tensor.strides)
        self.__array_interface__ = {
            "shape": tensor.shape,
            "strides": strides,
            "typestr": f"|V{size}",
            "data": (tensor.pointer, True),
            "version": 3,
        }


def _addresses(tensor: DeviceTensor) -> npt.NDArray[Any]:
    return np.asarray(_Addresses(tensor))
