"""Graphs: work that is described once and launched often, with one call."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

from hipattn.arguments import instance
from hipattn.errors import ArgumentError, ClosedError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.buffer import DeviceBuffer
from hipattn.runtime.owned import Owned
from hipattn.runtime.stream import Stream

__all__ = ["Graph"]


class _Uncollected:
    """Keeps the garbage collector off while a thread captures: what it frees would be captured, or spoil it."""

    def __init__(self) -> None:
        self._lock, self._inside, self._collected = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._collected = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._collected:
                gc.enable()


_uncollected = _Uncollected()


class Graph(Owned):
    """The launches that a function added to a stream.

    ::

        graph = Graph(stream, step)  # step() is called, and nothing runs
        for _ in range(tokens):
            graph.launch()

    Launches keep the arguments that they were captured with: what is to change from one to the next has to lie in
    device memory. The function may not allocate, free, copy to the host or synchronise, nor use another stream. An
    earlier call without a graph loads the kernels that it needs, makes its hipBLAS handle, and orders memory that
    another stream allocated.

    Parameters
    ----------
    stream
        Captures the work, and runs it later. Not the null stream.
    work
        Adds work to `stream`. It is kept, and so is the memory that it refers to.

    Attributes
    ----------
    stream : Stream

    Raises
    ------
    ArgumentError
        `stream` is the null stream.
    HipError
        `work` did what cannot be captured. The stream can be used as before.
    """

    def __init__(self, stream: Stream, work: Callable[[], object]) -> None:
        self._native: Any = None
        self.stream, self._work = instance("stream", stream, Stream), work
        if stream.native is None:
            raise ArgumentError("stream is the null stream, which captures nothing; it takes a Stream()")
        hip = bindings.hip
        captured, self._buffers = self._capture(stream, work)
        try:
            self._native = check(hip.hipGraphInstantiateWithFlags(captured, 0), "hipGraphInstantiateWithFlags")
        finally:
            hip.hipGraphDestroy(captured)

    @staticmethod
    def _capture(stream: Stream, work: Callable[[], object]) -> tuple[Any, set[DeviceBuffer]]:
        hip = bindings.hip
        mode = hip.hipStreamCaptureMode.hipStreamCaptureModeThreadLocal
        check(hip.hipStreamBeginCapture(stream.native, mode), "hipStreamBeginCapture")
        sync_each, stream.sync_each = stream.sync_each, False
        stream.captured = set()
        try:
            with _uncollected:
                work()
        except BaseException:
            status, captured = hip.hipStreamEndCapture(stream.native)
            if not status:
                hip.hipGraphDestroy(captured)
            raise
        finally:
            stream.sync_each = sync_each
            buffers, stream.captured = stream.captured, None
        return check(hip.hipStreamEndCapture(stream.native), "hipStreamEndCapture"), buffers

    @property
    def closed(self) -> bool:
        """Whether the graph was destroyed."""
        return self._native is None

    @property
    def stale(self) -> bool:
        """Whether memory that the work uses was freed since."""
        return any(buffer.closed for buffer in self._buffers)

    def launch(self) -> None:
        """Add all of it to the stream.

        Raises
        ------
        ClosedError
            The graph was closed, or memory that it uses.
        HipError
            The launch is refused, or, with HIPATTN_SYNC, the work fails.
        """
        if self._native is None:
            raise ClosedError("the graph is closed")
        if self.stale:
            raise ClosedError(
                "memory that the graph uses was freed since it was captured: of a tensor that was closed, or what a "
                "call keeps for the next one (workspace= gives it memory of yours)"
            )
        check(bindings.hip.hipGraphLaunch(self._native, self.stream.native), "hipGraphLaunch")
        if self.stream.sync_each:
            self.stream.sync()

    def close(self) -> None:
        """Destroy the graph; what was launched still runs. Closing twice does nothing."""
        native, self._native = self._native, None
        if native is not None:
            check(bindings.hip.hipGraphExecDestroy(native), "hipGraphExecDestroy")
