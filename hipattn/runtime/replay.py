"""Work that is done again and again: called first, then replayed from a graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from hipattn.errors import HipError
from hipattn.runtime import bindings
from hipattn.runtime.blas import Blas
from hipattn.runtime.graph import Graph
from hipattn.runtime.stream import Stream

__all__ = ["Replay"]

KEPT = 16  # pieces of work
TRIES = 3  # to capture one


class Replay:
    """Graphs of a stream's work, each captured the second time that the work is asked for.

    The first time it is called: what it needs (kernels, a hipBLAS handle, memory of other streams) cannot be had in a
    capture. It is called each time where it cannot be captured at all, and on the null stream, which captures nothing.
    While a graph is captured no other thread may use the stream.

    Parameters
    ----------
    stream
        Where the work goes.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        # By key, what was asked for last at the end; or how often it could not be captured.
        self._graphs: dict[Hashable, Graph | int] = {}

    def run(self, key: Hashable, work: Callable[[], object]) -> bool:
        """Add the work to the stream, and return whether `work` was called for it.

        Parameters
        ----------
        key
            All that the work's launches depend on and that is not in device memory: shapes, addresses.
        work
            Adds the work to the stream. What it does beside, to objects of the host, a replay does not do.

        Raises
        ------
        HipError
            A call fails.
        """
        if self._stream.native is None:
            work()
            return True
        # A graph uses the memory of the handle that was there when it was captured.
        blas = Blas.of(self._stream.device)
        key = blas, key
        graph = self._graphs.pop(key, None)
        if isinstance(graph, Graph) and graph.stale:
            self._close(graph)
            graph = None
        called = not isinstance(graph, Graph)
        if graph is None:
            work()
            graph = 0
        elif graph == TRIES:
            work()
        else:
            blas.handle(self._stream)  # after other streams' products, whose memory it shares
            if not isinstance(graph, Graph):
                graph = self._captured(work, graph)
            if isinstance(graph, Graph):
                graph.launch()
            else:
                work()
        self._graphs[key] = graph
        if len(self._graphs) > KEPT:
            self._close(self._graphs.pop(next(iter(self._graphs))))
        return called

    def _captured(self, work: Callable[[], object], tries: int) -> Graph | int:
        try:
            return Graph(self._stream, work)
        except HipError as error:
            if not error.name.startswith("hipErrorStreamCapture"):
                raise
            bindings.hip.hipGetLastError()  # dealt with here: nobody else's error
            never = error.name == "hipErrorStreamCaptureUnsupported"  # other errors may be another thread's
            return TRIES if never else tries + 1

    def close(self) -> None:
        """Destroy the graphs; what was launched still runs. The object can be used again."""
        while self._graphs:
            self._close(self._graphs.popitem()[1])

    @staticmethod
    def _close(graph: Graph | int) -> None:
        if isinstance(graph, Graph):
            graph.close()
