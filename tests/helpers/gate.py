"""A stream that stands still until a test lets it go."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from hipattn import Stream
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check

__all__ = ["held"]

_libc = ctypes.CDLL(None)


class Gate:
    """Open it, and the stream goes on."""

    def __init__(self, semaphore: ctypes.Array[ctypes.c_char]) -> None:
        self._semaphore = semaphore

    def open(self) -> None:
        _libc.sem_post(self._semaphore)


@contextmanager
def held(stream: Stream) -> Iterator[Gate]:
    """Hold back the work that is added to `stream` until the gate is opened, or the context ends.

    The stream waits in a native function, so that no lock of Python is involved.
    """
    semaphore = ctypes.create_string_buffer(64)  # sem_t
    _libc.sem_init(semaphore, 0, 0)
    wait = ctypes.cast(_libc.sem_wait, ctypes.c_void_p).value
    check(bindings.hip.hipLaunchHostFunc(stream.native, wait, ctypes.addressof(semaphore)), "hipLaunchHostFunc")
    try:
        yield Gate(semaphore)
    finally:
        _libc.sem_post(semaphore)
        stream.sync()
