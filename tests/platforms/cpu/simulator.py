"""The simulated GPUs without the library above: hip-python's calls, and kernels run on a GPU of any architecture.

Which GPUs a process simulates is settled at its first HIP call, so `run` has a process of its own, which has one of
each.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("HIPATTN_PLATFORM", "cpu")

from hipattn.compiler.program import CodeObject, Program
from hipattn.errors import HipError
from hipattn.platforms import cpu
from hipattn.platforms.cpu import control
from hipattn.runtime import bindings

__all__ = ["ARCHS", "WAVE", "Simulator", "compiled", "run"]

ARCHS = ("gfx942", "gfx90a", "gfx950", "gfx1100", "gfx1201")
WAVE = {arch: 32 if arch.startswith("gfx1") else 64 for arch in ARCHS}


class Simulator:
    """hip-python's calls as methods; a status that is not success is a HipError."""

    hip = bindings.hip
    kind = bindings.hip.hipMemcpyKind

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: bindings.check(getattr(self.hip, name)(*arguments), name)

    def status(self, name: str, *arguments: Any) -> str:
        """Return the name of the status that a call ends with."""
        return getattr(self.hip, name)(*arguments)[0].name  # type: ignore[no-any-return]

    def message(self, status: str) -> str:
        """Return hipGetErrorString's answer."""
        return str(self.hip.hipGetErrorString(self.hip.hipError_t[status])[1])

    @functools.cached_property
    def library(self) -> ctypes.CDLL:
        """What the platform's libraries call in each other."""
        return ctypes.CDLL(str(cpu.libraries()["amdhip64"]))

    def clear_fault(self) -> None:
        control.clear_fault(0)
        bindings.forget_fault()
        self.hip.hipGetLastError()


def compiled(
    source: str,
    arch: str,
    *options: str,
    name: str = "kernel.hip",
    headers: Mapping[str, str] | None = None,
    expressions: Sequence[str] = (),
) -> CodeObject:
    """Compile with hiprtc."""
    return Program(source, name, headers=headers, options=options, name_expressions=expressions).compile(arch)


@functools.cache
def _image(source: str, arch: str) -> bytes:
    return compiled(source, arch).image


@functools.cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_simulate_all)


def _simulate_all() -> None:
    os.environ["HIPATTN_CPU_ARCH"] = ",".join(ARCHS)


def run(
    code: str | bytes,
    arch: str,
    *arguments: NDArray[Any] | bytes,
    kernel: str = "kernel",
    grid: int = 1,
    block: int = 64,
    shared: int = 0,
) -> list[NDArray[Any]]:
    """Run a kernel, given as source or as image, to its end and return what the arrays then hold.

    Of the arguments, an array goes as a pointer to a copy on the device, bytes go by value.

    Raises
    ------
    HipError
        A HIP call failed.
    """
    image = _image(code, arch) if isinstance(code, str) else code
    result = _worker().submit(_run, image, arch, arguments, kernel, grid, block, shared).result()
    if isinstance(result, list):
        return result
    _worker().shutdown()  # its GPU may be broken
    _worker.cache_clear()
    raise HipError(*result)


def _run(
    image: bytes,
    arch: str,
    arguments: Sequence[NDArray[Any] | bytes],
    kernel: str,
    grid: int,
    block: int,
    shared: int,
) -> list[NDArray[Any]] | tuple[int, str, str, str]:
    sim = Simulator()
    sim.hipSetDevice(ARCHS.index(arch))
    arrays = [a for a in arguments if not isinstance(a, bytes)]
    device: list[Any] = []
    module = None
    try:
        module = sim.hipModuleLoadData(image)
        function = sim.hipModuleGetFunction(module, kernel.encode())
        for array in arrays:
            device.append(sim.hipMalloc(array.nbytes))
            sim.hipMemcpy(device[-1], array, array.nbytes, sim.kind.hipMemcpyHostToDevice)
        pointers = iter(device)
        values = [
            ctypes.create_string_buffer(a, len(a)) if isinstance(a, bytes) else ctypes.c_void_p(int(next(pointers)))
            for a in arguments
        ]
        parameters = (ctypes.c_void_p * max(len(values), 1))(*[ctypes.addressof(v) for v in values])
        sim.hipModuleLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, None, parameters, None)
        sim.hipDeviceSynchronize()
        results = [np.empty_like(array) for array in arrays]
        for pointer, array in zip(device, results, strict=True):
            sim.hipMemcpy(array, pointer, array.nbytes, sim.kind.hipMemcpyDeviceToHost)
        return results
    except HipError as error:
        return error.status, error.name, error.call, str(error)  # the error itself cannot be pickled
    finally:
        for pointer in device:
            sim.hip.hipFree(pointer)
        if module is not None:
            sim.hip.hipModuleUnload(module)
