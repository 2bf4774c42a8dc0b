"""Device memory, owned by a Python object."""

from __future__ import annotations

import sys
from typing import Any

from hipattn.arguments import integer
from hipattn.errors import ClosedError, HipError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.device import Device
from hipattn.runtime.owned import Owned
from hipattn.runtime.spare import MOST
from hipattn.runtime.stream import Stream

__all__ = ["DeviceBuffer", "live"]

# Without a lock, which a destructor could find held by its own thread: each use is one atomic step.
_live: dict[int, int] = {}


def live() -> tuple[int, int]:
    """Return (buffers, bytes) of device memory that `DeviceBuffer` objects own now."""
    sizes = list(_live.values())
    return len(sizes), sum(sizes)


class DeviceBuffer(Owned):
    """A piece of device memory. It frees itself once: when closed, when its context ends, or when collected.

    Allocation is ordered by a stream: the memory may be used in `stream` at once, and in other streams after
    an event. It is freed after all work that `used_on` was told of, so closing a buffer never pulls memory
    from under a kernel, and never waits on the host where the device has memory pools. There, its stream keeps a few
    small pieces for the next buffers of their sizes, until it is closed or `Device.trim` is called.

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
        The device has too little memory, or `stream` is captured.
    """

    closed = True  # until there is something to close

    def __init__(self, nbytes: int, stream: Stream | None = None) -> None:
        self._pointer = 0
        self._native: Any = None
        self._owned = False
        nbytes = integer("nbytes", nbytes)
        self.stream = stream or Device(0).default_stream
        self.device = self.stream.device
        self.nbytes = nbytes
        self._streams: dict[tuple[int, int], Stream] = {}
        self._keep: Any = None
        self._sync_to_close = False
        native = self.stream.native
        if nbytes:
            self._pointer = self._allocate(nbytes, native)
            self._owned = True
            _live[id(self)] = nbytes
        self.closed = False

    def _allocate(self, nbytes: int, native: Any) -> int:
        hip, spare = bindings.hip, self.stream.spare
        if self.stream.captured is not None:
            # Where the runtime could capture it, it would be memory that exists while the graph runs, and no longer.
            refused = hip.hipError_t.hipErrorStreamCaptureUnsupported
            raise bindings.failure(refused, "hipMallocAsync", bytes=nbytes)
        if spare is not None:
            pointer = spare.take(nbytes)
            if pointer:
                return pointer
            for old in spare.give_up(MOST - 1):  # of sizes that nobody has asked for lately
                check(hip.hipFreeAsync(old, native), "hipFreeAsync")
        self.device.use()
        pools = self.device.memory_pools
        result = hip.hipMallocAsync(nbytes, native) if pools else hip.hipMalloc(nbytes)
        if result[0]:
            try:
                free, total = self.device.memory()
            except HipError:
                free = total = -1  # not known
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
    def wrap(cls, pointer: int, nbytes: int, *, stream: Stream, keep: Any, sync_to_close: bool = False) -> DeviceBuffer:
        """Return a buffer over memory that someone else owns.

        Parameters
        ----------
        pointer, nbytes
            The memory, on the device of `stream`.
        stream
            In whose order the owner uses its memory: when the buffer goes, it waits for other streams' work.
        keep
            Keeps the memory alive; held by the buffer until then.
        sync_to_close
            The owner uses its memory from the host, in no stream's order: the host waits instead.
        """
        self = cls.__new__(cls)
        self.stream = stream
        self.device = stream.device
        self.nbytes = nbytes
        self._pointer = pointer
        self._native = None
        self._owned = False
        self._streams = {}
        self._keep = keep
        self._sync_to_close = sync_to_close
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

    @property
    def native(self) -> Any:
        """The device address as hip-python's object, which a call takes in less time than a number.

        Raises
        ------
        ClosedError
            The buffer was closed.
        """
        if self._native is None or self.closed:
            self._native = bindings.pointer(self.pointer)
        return self._native

    def clear(self, stream: Stream, start: int = 0, nbytes: int | None = None) -> None:
        """Set bytes to zero, in the stream's order: `nbytes` from `start` on, or all.

        Raises
        ------
        ClosedError
            The buffer was closed.
        HipError
            The call fails.
        """
        self.used_on(stream)
        size = self.nbytes - start if nbytes is None else nbytes
        cleared = bindings.hip.hipMemsetAsync(self.pointer + start, 0, size, stream.native)
        check(cleared, "hipMemsetAsync", bytes=size)

    def used_on(self, stream: Stream) -> None:
        """Note, before work that uses the memory is added to `stream`: it is freed after what is in it by then.

        At first use in another stream than its own, that one waits: memory from a pool exists only from its allocation
        on, and what used it before may still run.
        """
        if stream.captured is not None:
            stream.captured.add(self)
        if stream is not self.stream:
            key = stream.device.index, stream.handle
            if key not in self._streams and not self.stream.closed:
                stream.wait(self.stream)
            self._streams[key] = stream

    def join(self) -> Stream:
        """Return the buffer's stream, made to wait for all work in other streams that uses the memory."""
        stream = self.device.default_stream if self.stream.closed else self.stream
        for other in self._streams.values():
            if not other.closed:  # a closed stream has completed its work
                stream.wait(other)
        return stream

    def _spare(self) -> bool:
        """Leave the memory to the stream's next buffer of its size, if it takes no more than that; return whether."""
        stream = self.stream
        spare = stream.spare
        if spare is None or not self._owned or self._streams or stream.captured is not None or stream.closed:
            return False
        self.closed = True
        if not spare.put(self.nbytes, self._pointer):
            self.closed = False
            return False
        self._pointer = 0
        _live.pop(id(self), None)
        return True

    def close(self) -> None:
        """Free the memory after the work that uses it. Closing twice does nothing."""
        if self.closed or self._spare():
            return
        self.closed = True
        pointer, self._pointer = self._pointer, 0
        try:
            if self._owned:
                _live.pop(id(self), None)
                self._free(pointer)
            elif self._sync_to_close:
                self.device.sync()
            else:
                self.join()
        finally:
            self._keep = None

    def _free(self, pointer: int) -> None:
        if self.device.memory_pools:
            try:
                check(bindings.hip.hipFreeAsync(pointer, self.join().native), "hipFreeAsync", bytes=self.nbytes)
                return
            except HipError:
                pass  # a stream of another library may be gone; hipFree frees all the same
        # hipFree waits for all work of the device.
        check(bindings.hip.hipFree(pointer), "hipFree", bytes=self.nbytes)

    def __del__(self, finalizing: Any = sys.is_finalizing) -> None:
        if not (self.closed or finalizing() or self._spare()):
            self._release()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._pointer:#x}"
        return f"<DeviceBuffer {state}, {self.nbytes} bytes on device {self.device.index}>"
