"""Memory that the work of a stream uses in passing, kept for the work that comes next."""

from __future__ import annotations

from hipattn.errors import HipError
from hipattn.runtime.buffer import DeviceBuffer
from hipattn.runtime.stream import Stream

__all__ = ["Scratch"]

STREAMS = 4  # memory is kept for so many


class Scratch:
    """A piece of device memory for each stream, which grows where more is asked for. For one thread at a time.

    Parameters
    ----------
    zeros
        New memory holds zeros, and then what the work before left there. Otherwise it holds anything.
    """

    def __init__(self, *, zeros: bool = False) -> None:
        self._zeros = zeros
        self._held: dict[int, DeviceBuffer] = {}  # by the stream's handle, the one asked for last at the end
        self._last: DeviceBuffer | None = None

    def get(self, nbytes: int, stream: Stream) -> DeviceBuffer:
        """Return a stream's memory, of at least `nbytes` bytes, and let go of that of streams long not used.

        Raises
        ------
        HipError
            The device has too little memory.
        """
        last = self._last
        if last is not None and last.stream is stream and last.nbytes >= nbytes and not last.closed:
            return last
        held = self._held.pop(stream.handle, None)
        stale = [handle for handle, buffer in self._held.items() if buffer.stream.closed]
        stale += list(self._held)[: max(0, len(self._held) - len(stale) - STREAMS + 1)]
        for handle in dict.fromkeys(stale):
            self._held.pop(handle).close()
        self._last = self._held[stream.handle] = self._enlarged(held, nbytes, stream)
        return self._last

    def _enlarged(self, held: DeviceBuffer | None, nbytes: int, stream: Stream) -> DeviceBuffer:
        if held is None:
            return self._new(nbytes, stream)
        if held.stream.closed:  # another stream's, which had the same handle
            held.close()
            return self._new(nbytes, stream)
        if held.nbytes >= nbytes:
            return held
        held.close()
        try:  # decoding asks for a little more each time
            return self._new(max(nbytes, 2 * held.nbytes), stream)
        except HipError:
            return self._new(nbytes, stream)

    def _new(self, nbytes: int, stream: Stream) -> DeviceBuffer:
        buffer = DeviceBuffer(nbytes, stream)
        if self._zeros:
            buffer.clear(stream)
        return buffer

    def close(self) -> None:
        """Free all of it, after the work that uses it. The object can be used again."""
        held, self._held, self._last = self._held, {}, None
        for buffer in held.values():
            buffer.close()
