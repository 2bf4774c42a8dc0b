"""Graphs: work that is described once and launched often, with one call."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from hipattn.arguments import instance
from hipattn.errors import ArgumentError, ClosedError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.owned import Owned
from hipattn.runtime.stream import Stream

__all__ = ["Graph"]


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
        captured = self._capture(stream, work)
        try:
            self._native = check(hip.hipGraphInstantiateWithFlags(captured, 0), "hipGraphInstantiateWithFlags")
        finally:
            hip.hipGraphDestroy(captured)

    @staticmethod
    def _capture(stream: Stream, work: Callable[[], object]) -> Any:
        hip = bindings.hip
        mode = hip.hipStreamCaptureMode.hipStreamCaptureModeThreadLocal
        check(hip.hipStreamBeginCapture(stream.native, mode), "hipStreamBeginCapture")
        sync_each, stream.sync_each = stream.sync_each, False
        collects = gc.isenabled()
        gc.disable()  # what it frees would be captured, or spoil the capture
        try:
            work()
        except BaseException:
            status, captured = hip.hipStreamEndCapture(stream.native)
            if not status:
                hip.hipGraphDestroy(captured)
            raise
        finally:
            stream.sync_each = sync_each
            if collects:
                gc.enable()
        return check(hip.hipStreamEndCapture(stream.native), "hipStreamEndCapture")

    @property
    def closed(self) -> bool:
        """Whether the graph was destroyed."""
        return self._native is None

    def launch(self) -> None:
        """Add all of it to the stream.

        Raises
        ------
        ClosedError
            The graph was closed.
        HipError
            The launch is refused, or, with HIPATTN_SYNC, the work fails.
        """
        if self._native is None:
            raise ClosedError("the graph is closed")
        check(bindings.hip.hipGraphLaunch(self._native, self.stream.native), "hipGraphLaunch")
        if self.stream.sync_each:
            self.stream.sync()

    def close(self) -> None:
        """Destroy the graph; what was launched still runs. Closing twice does nothing."""
        native, self._native = self._native, None
        if native is not None:
            check(bindings.hip.hipGraphExecDestroy(native), "hipGraphExecDestroy")
