"""Steer the simulator from a test: make calls fail, delay streams, count what is allocated.

Everything here acts on the simulated libraries that this process has opened. The calls are the ``sim_control_*``
functions of ``src/api_control.cpp``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

from hipattn.platforms import cpu

__all__ = ["call_count", "clear_fault", "delayed_streams", "failing", "live_allocations", "live_bytes"]


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(cpu.libraries()["amdhip64"]))
    library.sim_control_call_count.restype = ctypes.c_long
    library.sim_control_live_bytes.restype = ctypes.c_size_t
    library.sim_control_live_allocations.restype = ctypes.c_size_t
    return library


@contextmanager
def failing(calls: str) -> Iterator[None]:
    """Make calls fail while the context lasts: "hipMalloc:3" fails the third hipMalloc from now on, once."""
    _library().sim_control_set_fail(calls.encode())
    try:
        yield
    finally:
        _library().sim_control_set_fail(b"")


@contextmanager
def delayed_streams(microseconds: int) -> Iterator[None]:
    """Delay each stream operation by a random time up to this one while the context lasts."""
    _library().sim_control_set_stream_delay(microseconds)
    try:
        yield
    finally:
        _library().sim_control_set_stream_delay(0)


def call_count(name: str) -> int:
    """Return how often a HIP function was called in this process."""
    return int(_library().sim_control_call_count(name.encode()))


def live_bytes() -> int:
    """Return the bytes of device memory that are allocated."""
    return int(_library().sim_control_live_bytes())


def live_allocations() -> int:
    """Return the number of device allocations."""
    return int(_library().sim_control_live_allocations())


def clear_fault(device: int = 0) -> None:
    """Make a device usable again after a fault, which no real GPU can."""
    _library().sim_control_clear_fault(device)
