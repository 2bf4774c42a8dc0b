"""The only importer of hip-python: its modules, their errors as exceptions, and a record of the calls made.

Other modules write ``bindings.check(bindings.hip.hipMalloc(n), "hipMalloc", bytes=n)``. They reach `hip`, `hiprtc`
and `hipblas` through this module at each call, so that `record` sees every call.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rocm.bindings.hip
import rocm.bindings.hipblas
import rocm.bindings.hiprtc
from rocm.bindings._hip_helpers import HipModuleLaunchKernel_extra as _Extra  # the type of `extra`
from rocm.bindings.util import paths as _paths
from rocm.bindings.util.types import ListOfPointer as _ListOfPointer
from rocm.bindings.util.types import Pointer as _Pointer

from hipattn.errors import HipError
from hipattn.platforms.select import Platform, choose, rocm_library

__all__ = [
    "NO_PARAMETERS",
    "check",
    "failure",
    "fault",
    "forget_fault",
    "hip",
    "hipblas",
    "hiprtc",
    "launch_extra",
    "platform",
    "pointer",
    "record",
]

# hip-python's functions carry no types.
_hip: Any = rocm.bindings.hip
_hiprtc: Any = rocm.bindings.hiprtc
_hipblas: Any = rocm.bindings.hipblas

hip, hiprtc, hipblas = _hip, _hiprtc, _hipblas

# What hip-python makes of an argument, made once: at each launch it costs more than the launch itself.
NO_PARAMETERS: Any = _ListOfPointer.fromObj(None)


def launch_extra(block: Any) -> Any:
    """Return the ``extra`` array of ``hipModuleLaunchKernel``, which it keeps alive, as hip-python's own object.

    What the array points to it does not keep.
    """
    return _Extra.fromObj(block)


def pointer(to: Any) -> Any:
    """Return a pointer to a ctypes object, which it keeps alive, or to an address, as hip-python's own object."""
    return _Pointer.fromObj(to)


_find_rocm_library: Callable[..., bytes] = _paths.get_library_path


@functools.cache
def platform() -> Platform:
    """Return the platform of this process. It is chosen at the first call and cannot change.

    Raises
    ------
    PlatformError
        No platform, or not the one that HIPATTN_PLATFORM names, can be used.
    """
    return choose(_find_rocm_library)


def _library_path(shortname: str, *arguments: Any) -> bytes:
    ours = platform().libraries.get(shortname)
    return os.fsencode(ours or rocm_library(lambda name: _find_rocm_library(name, *arguments), shortname))


# hip-python looks this function up when it opens a library, which it does at the first call into it.
_paths.get_library_path = _library_path


# After one of these the device may answer every call with the same error, until the process ends.
_FAULTS = {"hipErrorIllegalAddress", "hipErrorLaunchFailure", "hipErrorLaunchTimeOut", "hipErrorAssert"}

fault: HipError | None = None
"""The first error that made the device unusable, or None."""


def forget_fault() -> None:
    """Forget `fault`, after the simulator's own was cleared."""
    global fault
    fault = None


def check(result: tuple[Any, ...], call: str, **asked: Any) -> Any:
    """Return what a hip-python call returned beside its status.

    Parameters
    ----------
    result
        The tuple that the call returned.
    call
        Its name, for the error.
    asked
        What was asked for, for the error: sizes, names.

    Raises
    ------
    HipError
        The status is not success.
    """
    if result[0]:
        raise failure(result[0], call, **asked)
    return result[1] if len(result) == 2 else result[1:]


def failure(status: Any, call: str, **asked: Any) -> HipError:
    """Make the error for a status, and remember it if it stays: if the device is unusable from now on."""
    global fault
    name = str(getattr(status, "name", status))
    what = ", ".join(f"{key} {value}" for key, value in asked.items())
    message = f"{call}{f' ({what})' if what else ''}: {name}{_explain(status)}"
    if name.startswith("hipErrorStreamCapture"):
        message += "; what a graph captures cannot allocate, wait for the host or other streams, or copy from or to it"
    if fault is not None:
        message += f"\nthe device has been unusable since: {fault}"
    error = HipError(int(status), name, call, message)
    if fault is None and name in _FAULTS and _hip.hipDeviceSynchronize()[0]:
        fault = error
    return error


def _explain(status: Any) -> str:
    """Return what the library says of a status. The simulator's text names kernel, block and thread of a fault."""
    if isinstance(status, _hip.hipError_t):
        text = _hip.hipGetErrorString(status)
    elif isinstance(status, _hipblas.hipblasStatus_t):
        return ""
    else:
        text = _hiprtc.hiprtcGetErrorString(status)
    text = text[-1] if isinstance(text, tuple) else text
    text = text.decode() if isinstance(text, bytes) else str(text)
    return f": {text}" if text else ""


class _Recorded:
    """A binding module whose functions note their name and arguments when called."""

    def __init__(self, module: Any, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._module = module
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._module, name)
        if isinstance(attribute, type) or not callable(attribute):
            return attribute

        def call(*arguments: Any) -> Any:
            self._calls.append((name, arguments))
            return attribute(*arguments)

        return call


@contextmanager
def record() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Record every call into HIP, hiprtc and hipBLAS while the context lasts, as (name, arguments)."""
    global hip, hiprtc, hipblas
    calls: list[tuple[str, tuple[Any, ...]]] = []
    before = hip, hiprtc, hipblas
    hip, hiprtc, hipblas = (_Recorded(module, calls) for module in before)
    try:
        yield calls
    finally:
        hip, hiprtc, hipblas = before
