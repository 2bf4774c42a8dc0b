"""Arrays in device memory: a shape, strides and a dtype over a `DeviceBuffer`."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hipattn import dlpack
from hipattn.errors import ArgumentError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.buffer import DeviceBuffer
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "DeviceTensor", "as_dtype"]

FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = {dtype.name: dtype for dtype in (FLOAT32, FLOAT16, BFLOAT16)}


def as_dtype(dtype: npt.DTypeLike, argument: str = "dtype") -> np.dtype[Any]:
    """Return float32, float16 or bfloat16 as NumPy's dtype (bfloat16 from ml_dtypes).

    Raises
    ------
    ArgumentError
        It is another dtype.
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in _DTYPES:
        raise ArgumentError(f"{argument} is {name}; accepted: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


class DeviceTensor:
    """A view of device memory, which it keeps alive.

    Make one with `empty`, `from_numpy` or `asarray`; slices, `transpose` and `reshape` are views of the same memory.

    Parameters
    ----------
    buffer
        The memory.
    shape
        Sizes, 0 or more each.
    dtype
        float32, float16 or bfloat16.
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
        self.dtype = as_dtype(dtype)
        self.shape = _sizes(shape)
        self.strides = _row_major(self.shape) if strides is None else tuple(strides)
        self.offset = offset
        if len(self.strides) != len(self.shape) or min((*self.strides, offset, 0)) < 0:
            raise ArgumentError(f"strides {strides} and offset {offset} do not fit shape {shape}; none may be negative")
        last = offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and (last + 1) * self.dtype.itemsize > buffer.nbytes:
            raise ArgumentError(
                f"shape {self.shape} with strides {self.strides} at {offset} ends at byte "
                f"{(last + 1) * self.dtype.itemsize} of a buffer of {buffer.nbytes} bytes"
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
        kind = as_dtype(dtype)
        sizes = _sizes(shape)
        return cls(DeviceBuffer(math.prod(sizes) * kind.itemsize, stream), sizes, kind)

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
        kind = as_dtype(host.dtype, "array's dtype")
        host = np.ascontiguousarray(host)
        tensor = cls.empty(host.shape, kind, stream=stream)
        tensor._upload(host, stream or tensor.buffer.stream)
        return tensor

    def _upload(self, host: npt.NDArray[Any], stream: Stream) -> None:
        if host.nbytes:
            kind = bindings.hip.hipMemcpyKind.hipMemcpyHostToDevice
            result = bindings.hip.hipMemcpyAsync(self.pointer, host.ctypes.data, host.nbytes, kind, stream.native)
            check(result, "hipMemcpyAsync", kind="host to device", bytes=host.nbytes)
            self.buffer.used_on(stream)
            stream.sync()

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
            self._upload(np.ascontiguousarray(host, self.dtype), where)
            return
        around = self._view((self._span(),), (1,), self.offset)
        flat = around.numpy(stream=stream)
        steps = tuple(step * self.dtype.itemsize for step in self.strides)
        np.lib.stride_tricks.as_strided(flat, self.shape, steps)[...] = host
        around._upload(flat, where)

    def numpy(self, *, stream: Stream | None = None) -> npt.NDArray[Any]:
        """Copy the tensor to the host. Synchronises first: with `stream`, or with every stream that used the memory.

        Raises
        ------
        HipError
            Work that came before failed.
        """
        streams = (stream,) if stream else self.buffer.streams()
        for other in streams[1:]:
            if not other.closed:
                other.sync()
        first = streams[0]
        if first.closed:
            first = self.device.default_stream
        span = self._span()
        host = np.empty(span, self.dtype)
        if span:
            kind = bindings.hip.hipMemcpyKind.hipMemcpyDeviceToHost
            result = bindings.hip.hipMemcpyAsync(host.ctypes.data, self.pointer, host.nbytes, kind, first.native)
            check(result, "hipMemcpyAsync", kind="device to host", bytes=host.nbytes)
        first.sync()
        steps = tuple(step * self.dtype.itemsize for step in self.strides)
        view = np.lib.stride_tricks.as_strided(host, self.shape, steps)
        return view if self.is_contiguous else np.ascontiguousarray(view)

    def _span(self) -> int:
        """Return how many elements lie between the first and the last one, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))

    @property
    def pointer(self) -> int:
        """Device address of the first element.

        Raises
        ------
        ClosedError
            The buffer was closed.
        """
        return self.buffer.pointer + self.offset * self.dtype.itemsize

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
        expected = _row_major(self.shape)
        return self.size == 0 or all(
            size == 1 or step == want for size, step, want in zip(self.shape, self.strides, expected, strict=True)
        )

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
            elif isinstance(item, int):
                if not -size <= item < size:
                    raise IndexError(f"index {item} is out of range for axis {axis} of size {size}")
                offset += (item % size) * step
            else:
                raise ArgumentError(f"index {item!r} is not accepted; accepted: integers, slices, ...")
        return self._view(tuple(shape), tuple(strides), offset)

    def transpose(self, *axes: int) -> DeviceTensor:
        """Return a view with the axes in this order.

        Raises
        ------
        ArgumentError
            `axes` is no permutation.
        """
        if sorted(axes) != list(range(self.ndim)):
            raise ArgumentError(f"axes is {axes}; it takes a permutation of {tuple(range(self.ndim))}")
        shape, strides = (tuple(values[axis] for axis in axes) for values in (self.shape, self.strides))
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
        return self._view(sizes, _row_major(sizes), self.offset)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface, which ROCm builds of CuPy and Numba read too."""
        if self.dtype == BFLOAT16:
            raise AttributeError("__cuda_array_interface__ cannot express bfloat16; use DLPack")
        self._on_a_gpu("__cuda_array_interface__")
        return {
            "shape": self.shape,
            "strides": tuple(step * self.dtype.itemsize for step in self.strides),
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "stream": self.buffer.stream.handle or 1,  # 1 is the interface's name of the null stream
            "version": 3,
        }

    def _on_a_gpu(self, attribute: str) -> None:
        if self.device.simulated:
            raise AttributeError(f"{attribute} is for memory of a GPU; this tensor is on {self.device.name}")

    def __repr__(self) -> str:
        return f"<DeviceTensor {self.shape} {self.dtype.name} on device {self.device.index}>"


def _sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not all(isinstance(size, int | np.integer) and size >= 0 for size in sizes):
        raise ArgumentError(f"shape is {shape!r}; it takes integers of 0 or more")
    return tuple(int(size) for size in sizes)
