"""From a specialisation to a kernel that can be launched, compiled at most once."""

from __future__ import annotations

import threading
from typing import Any

from hipattn.compiler.cache import DiskCache
from hipattn.compiler.code_object import check_arguments
from hipattn.compiler.program import Program
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import CompileError
from hipattn.runtime.device import Device
from hipattn.runtime.module import Kernel, Module

__all__ = ["load", "loaded", "name_of"]

_loaded: dict[tuple[int, Specialisation], Kernel] = {}
_failed: dict[tuple[int, Specialisation], CompileError] = {}  # the same text does not compile a second time
_lock = threading.Lock()


def load(specialisation: Specialisation, device: Device) -> Kernel:
    """Return the kernel, from memory, from the disk cache, or compiled now.

    Raises
    ------
    CompileError
        The source does not compile for the device's architecture.
    HipError
        The code object cannot be loaded, or does not take the argument struct.
    """
    key = device.index, specialisation
    kernel = _loaded.get(key)
    if kernel is None:
        with _lock:
            kernel = _loaded.get(key)
            if kernel is None:
                if key in _failed:
                    raise _failed[key]
                try:
                    kernel = _loaded[key] = _build(specialisation, device)
                except CompileError as error:
                    _failed[key] = error.with_traceback(None)
                    raise
    return kernel


def loaded() -> tuple[Specialisation, ...]:
    """Return what `load` has loaded in this process."""
    return tuple(specialisation for _, specialisation in _loaded)


def name_of(function: Any) -> str | None:
    """Return the name of the kernel that a recorded launch was given, None if `load` did not load it."""
    return next((kernel.name for kernel in _loaded.values() if kernel._function is function), None)


def _build(specialisation: Specialisation, device: Device) -> Kernel:
    program = Program(
        specialisation.render(device.arch), f"{specialisation.name}.hip", headers=specialisation.headers()
    )
    code = program.compile(device.arch, DiskCache())
    check_arguments(code.image, specialisation.kernel, specialisation.arguments)
    return Module(code.image, device).kernel(specialisation.kernel, specialisation.arguments)
