"""Device memory, owned by a Python object."""

from __future__ import annotations

import threading
from typing import Any

from hipattn.errors import ArgumentError, ClosedError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.device import Device
from hipattn.runtime.release import release
from hipattn.runtime.stream import Stream

__all__ = ["DeviceBuffer", "live"]

_live: dict[int, int] = {}
_live_lock = threading.Lock()


def live() -> tuple[int, int]:
    """Return (buffers, bytes) of device memory that `DeviceBuffer` objects own now."""
    with _live_lock:
        return len(_live), sum(_live.values())


class DeviceBuffer:
    """A piece of device memory. It frees itself once: when closed, when its context ends, or when collected.

    Allocation is ordered by a stream: the memory may be used in `stream` at once, and in other streams after an
    event. It is freed after all work that `used_on` was told of, so closing a buffer never pulls memory from under
    a kernel, and never waits on the host where the device has memory pools.

    Parameters
    ----------
    nbytes
        Size in bytes. 0 is legal and owns nothing.
    stream
        Default: the default stream of device 0.

    Attributes
    ----------
    nbytes : int
    device : Device
    stream : Stream
        The stream that orders allocation and freeing.

    Raises
    ------
    ArgumentError
        `nbytes` is negative or no integer.
    HipError
        The device has too little memory.
    """

    def __init__(self, nbytes: int, stream: Stream | None = None) -> None:
        self._pointer = 0
        self._owned = False
        self.closed = True  # until there is something to close
        if not isinstance(nbytes, int) or nbytes < 0:
            raise ArgumentError(f"nbytes is {nbytes!r}; it takes an integer of 0 or more")
        self.stream = stream or Device(0).default_stream
        self.device = self.stream.device
        self.nbytes = nbytes
        self._streams: set[Stream] = set()
        self._keep: Any = None
        native = self.stream.native
        self.device.use()
        if nbytes:
            self._pointer = self._allocate(nbytes, native)
            self._owned = True
            with _live_lock:
                _live[id(self)] = nbytes
        self.closed = False

    def _allocate(self, nbytes: int, native: Any) -> int:
        hip = bindings.hip
        pools = self.device.memory_pools
        result = hip.hipMallocAsync(nbytes, native) if pools else hip.hipMalloc(nbytes)
        if result[0]:
            free, total = self.device.memory()
            call = "hipMallocAsync" if pools else "hipMalloc"
            buffers, owned = live()
            raise bindings.failure(
                result[0],
                call,
                bytes=nbytes,
                device=self.device.index,
                free=free,
                total=total,
                held=f"{owned} bytes in {buffers} buffers of hipattn",
            )
        return int(result[1])

    @classmethod
    def wrap(cls, pointer: int, nbytes: int, *, device: Device | None = None, keep: Any = None) -> DeviceBuffer:
        """Return a buffer over memory that someone else owns and that `keep`, held by the buffer, keeps alive."""
        self = cls.__new__(cls)
        self.device = device or Device(0)
        self.stream = self.device.default_stream
        self.nbytes = nbytes
        self._pointer = pointer
        self._owned = False
        self._streams = set()
        self._keep = keep
        self.closed = False
        return self

    @property
    def pointer(self) -> int:
        """The device address, 0 for an empty buffer.

        Raises
        ------
        ClosedError
            The buffer was closed.
        """
        if self.closed:
            raise ClosedError(f"the buffer of {self.nbytes} bytes is closed")
        return self._pointer

    def used_on(self, stream: Stream) -> None:
        """Note that work in `stream` uses the memory: it is freed only after the work that is in it by then."""
        if stream is not self.stream:
            self._streams.add(stream)

    def streams(self) -> tuple[Stream, ...]:
        """Return the streams whose work may use the memory."""
        return (self.stream, *self._streams)

    def close(self) -> None:
        """Free the memory after the work that uses it. Closing twice does nothing."""
        if self.closed:
            return
        self.closed = True
        self._keep = None
        pointer, self._pointer = self._pointer, 0
        if not self._owned:
            return
        with _live_lock:
            _live.pop(id(self), None)
        self.device.use()
        if self.device.memory_pools and not self.stream.closed:
            for stream in self._streams:
                if not stream.closed:  # a closed stream has completed its work
                    self.stream.wait(stream)
            check(bindings.hip.hipFreeAsync(pointer, self.stream.native), "hipFreeAsync", bytes=self.nbytes)
        else:
            # hipFree waits for all work of the device.
            check(bindings.hip.hipFree(pointer), "hipFree", bytes=self.nbytes)

    def __enter__(self) -> DeviceBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True) and self._owned:
            release(self.close)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._pointer:#x}"
        return f"<DeviceBuffer {state}, {self.nbytes} bytes on device {self.device.index}>"
