"""Events: points in a stream's work, to wait for and to time with."""

from __future__ import annotations

from typing import Any

from hipattn.errors import ClosedError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.device import Device
from hipattn.runtime.owned import Owned

__all__ = ["Event"]


class Event(Owned):
    """A point in a stream's work, set by `Stream.record`.

    ``end - start`` is the time between two recorded events in milliseconds; both must have completed.

    Parameters
    ----------
    device
        Default: device 0.
    timing
        Whether the event keeps its time. Without it, recording and waiting are cheaper.
    """

    def __init__(self, device: Device | None = None, *, timing: bool = True) -> None:
        self._native: Any = None
        self.device = Device.of(device)
        self.device.use()
        flags = 0 if timing else bindings.hip.hipEventDisableTiming
        self._native = check(bindings.hip.hipEventCreateWithFlags(flags), "hipEventCreateWithFlags")

    @property
    def closed(self) -> bool:
        """Whether the event was destroyed."""
        return self._native is None

    @property
    def native(self) -> Any:
        """The hip-python object.

        Raises
        ------
        ClosedError
            The event was closed.
        """
        if self._native is None:
            raise ClosedError("the event is closed")
        return self._native

    @property
    def done(self) -> bool:
        """Whether the work before the event has completed. True for an event that was never recorded."""
        status = bindings.hip.hipEventQuery(self.native)[0]
        if status and status.name != "hipErrorNotReady":
            raise bindings.failure(status, "hipEventQuery")
        return not status

    def sync(self) -> None:
        """Wait on the host until the work before the event has completed."""
        check(bindings.hip.hipEventSynchronize(self.native), "hipEventSynchronize")

    def __sub__(self, start: Event) -> float:
        if not isinstance(start, Event):
            return NotImplemented
        milliseconds = check(bindings.hip.hipEventElapsedTime(start.native, self.native), "hipEventElapsedTime")
        return float(milliseconds)

    def close(self) -> None:
        """Destroy the event. Closing twice does nothing."""
        native, self._native = self._native, None
        if native is not None:
            check(bindings.hip.hipEventDestroy(native), "hipEventDestroy")
