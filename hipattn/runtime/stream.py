"""Streams: work that a device does in order."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

from hipattn import config
from hipattn.errors import ArgumentError, ClosedError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.device import Device
from hipattn.runtime.event import Event
from hipattn.runtime.owned import Owned
from hipattn.runtime.spare import SpareMemory

__all__ = ["Stream"]


class Stream(Owned):
    """A queue of work on a device. Work in one stream runs in order; between streams, only events order it.

    Operations return before the device has done them: read results after `sync`.

    Parameters
    ----------
    device
        Default: device 0.

    Attributes
    ----------
    device : Device
    handle : int
        HIP's ``hipStream_t``; 0 is the null stream.
    sync_each : bool
        Whether each launch is synchronised (HIPATTN_SYNC).
    spare : SpareMemory or None
        What buffers have freed and others will take.
    """

    # (device, handle) → the object that owns it, so that a handle that comes back is known for closed when it is.
    _owners: ClassVar[weakref.WeakValueDictionary[tuple[int, int], Stream]] = weakref.WeakValueDictionary()

    def __init__(self, device: Device | None = None) -> None:
        self._native: Any = None
        self._owner: Stream | None = None
        self.spare: SpareMemory | None = None
        self._owned = False
        self._closed = True  # until there is something to close
        self.device = Device.of(device)
        self._settings()
        self.device.use()
        # Non-blocking: not ordered with the null stream, which other libraries use.
        flags = bindings.hip.hipStreamNonBlocking
        self._native = check(bindings.hip.hipStreamCreateWithFlags(flags), "hipStreamCreateWithFlags")
        self._owned = True
        self._closed = False
        self._owners[self.device.index, self.handle] = self
        self.device.keep_spare(self.handle)
        self.spare = self.device.spare.get(self.handle)

    @classmethod
    def from_handle(cls, handle: int, device: Device | None = None) -> Stream:
        """Wrap a stream that another library made (torch's ``torch.cuda.current_stream().cuda_stream``).

        It must outlive the object, which never destroys it; the handle of a `Stream` is closed when that is. 0 is
        the null stream.
        """
        self = cls.__new__(cls)
        self.device = Device.of(device)
        self._owner = cls._owners.get((self.device.index, handle))
        self._settings()
        self._native = bindings.hip.ihipStream_t.fromObj(handle) if handle else None
        self.spare = self.device.spare.get(handle)  # none of other libraries' streams: nobody says when they end
        self._owned = False
        self._closed = False
        return self

    def _settings(self) -> None:
        self.sync_each: bool = config.get("HIPATTN_SYNC")
        self._one_of_many = Device.count() > 1
        self.captured: set[Any] | None = None  # buffers that a capture under way uses

    @property
    def closed(self) -> bool:
        """Whether the stream, or the `Stream` that its handle is of, was closed."""
        return self._closed or (self._owner is not None and self._owner._closed)

    @property
    def native(self) -> Any:
        """The hip-python object, None for the null stream. Makes the stream's device current if there are several.

        Raises
        ------
        ClosedError
            The stream was closed.
        """
        if (self._closed or self._owner is not None) and self.closed:  # a property takes time at each launch
            raise ClosedError("the stream is closed")
        if self._one_of_many:
            self.device.use()
        return self._native

    @property
    def handle(self) -> int:
        """HIP's ``hipStream_t`` as a number."""
        return int(self.native) if self.native is not None else 0

    def sync(self) -> None:
        """Wait on the host until all work in the stream has completed.

        Raises
        ------
        HipError
            Work in the stream, or earlier on the device, failed.
        """
        check(bindings.hip.hipStreamSynchronize(self.native), "hipStreamSynchronize")

    @property
    def done(self) -> bool:
        """Whether all work in the stream has completed."""
        status = bindings.hip.hipStreamQuery(self.native)[0]
        if status and status.name != "hipErrorNotReady":
            raise bindings.failure(status, "hipStreamQuery")
        return not status

    def record(self, event: Event | None = None) -> Event:
        """Set `event` (by default a new one) after the work that is in the stream now, and return it."""
        if event is None:
            event = Event(self.device)
        check(bindings.hip.hipEventRecord(event.native, self.native), "hipEventRecord")
        return event

    def wait(self, other: Event | Stream) -> None:
        """Make work that is added from now on wait for an event, or for all work now in another stream."""
        if isinstance(other, Event):
            check(bindings.hip.hipStreamWaitEvent(self.native, other.native, 0), "hipStreamWaitEvent")
        elif isinstance(other, Stream):
            with Event(other.device, timing=False) as event:
                self.wait(other.record(event))
        else:
            raise ArgumentError(f"other is {type(other).__name__}; it takes an Event or a Stream")

    def close(self) -> None:
        """Wait for the stream's work and destroy it. Closing twice does nothing."""
        if self.closed:
            return
        try:
            spare = self.device.spare.pop(self.handle, None) if self._owned else None
            for pointer in spare.end() if spare is not None else ():
                check(bindings.hip.hipFreeAsync(pointer, self.native), "hipFreeAsync")
            self.sync()
        finally:
            self._closed = True
            native, self._native = self._native, None
            if self._owned:
                self._owners.pop((self.device.index, int(native)), None)
                check(bindings.hip.hipStreamDestroy(native), "hipStreamDestroy")

    def __del__(self) -> None:
        if getattr(self, "_owned", False):
            super().__del__()

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return (0, handle): the protocol that libraries exchange streams with."""
        return 0, self.handle

    def __repr__(self) -> str:
        return "<Stream closed>" if self.closed else f"<Stream {self.handle:#x} on device {self.device.index}>"
