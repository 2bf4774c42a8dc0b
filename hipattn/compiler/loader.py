"""From a specialisation to a kernel that can be launched, compiled at most once."""

from __future__ import annotations

import logging
import threading
from typing import Any

from hipattn.compiler.cache import DiskCache
from hipattn.compiler.code_object import check
from hipattn.compiler.program import CodeObject, Program
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import CompileError
from hipattn.runtime.device import Device
from hipattn.runtime.module import Kernel, Module

__all__ = ["build", "load", "loaded", "name_of"]

log = logging.getLogger("hipattn")

_LONGEST_NAME = 200  # of a file: past what a file system takes, hiprtc makes an empty code object and reports success

_loaded: dict[tuple[int, Specialisation], Kernel] = {}
# The same text does not compile a second time. What the error says, not the error: that holds on to its frames.
_failed: dict[tuple[int, Specialisation], tuple[str, str, tuple[str, ...], str]] = {}
_lock = threading.Lock()


def load(specialisation: Specialisation, device: Device) -> Kernel:
    """Return the kernel, from memory, from the disk cache, or compiled now.

    Raises
    ------
    CompileError
        The source does not compile for the device's architecture.
    CodeObjectError
        The code object does not fit its launches.
    HipError
        The code object cannot be loaded.
    """
    key = device.index, specialisation
    kernel = _loaded.get(key)
    if kernel is None:
        with _lock:
            kernel = _loaded.get(key)
            if kernel is None:
                if key in _failed:
                    raise CompileError(*_failed[key])
                try:
                    kernel = _loaded[key] = _load(specialisation, device)
                except CompileError as error:
                    _failed[key] = error.name, error.log, error.options, error.source
                    raise
    return kernel


def loaded() -> tuple[Specialisation, ...]:
    """Return what `load` has loaded in this process."""
    return tuple(specialisation for _, specialisation in _loaded)


def name_of(function: Any) -> str | None:
    """Return the name of the kernel that a recorded launch was given, None if `load` did not load it."""
    return next((kernel.name for kernel in _loaded.values() if kernel._function is function), None)


def build(specialisation: Specialisation, arch: str) -> CodeObject:
    """Compile for `arch`, or take the result from the disk cache, and check it. No device need be present.

    Raises
    ------
    ArgumentError
        `arch` is not known.
    CompileError
        The source does not compile for `arch`.
    CodeObjectError
        The code object does not fit its launches.
    """
    source, headers = specialisation.render(arch), specialisation.headers()
    code = Program(source, f"{specialisation.name[:_LONGEST_NAME]}.hip", headers=headers).compile(arch, DiskCache())
    kernel = check(code.image, specialisation, arch)
    if kernel is not None and kernel.spills:
        log.warning("%s does not fit the registers of %s and is slow: %s", specialisation.name, arch, kernel)
    return code


def _load(specialisation: Specialisation, device: Device) -> Kernel:
    code = build(specialisation, device.arch)
    return Module(code.image, device).kernel(specialisation.kernel, specialisation.arguments)
