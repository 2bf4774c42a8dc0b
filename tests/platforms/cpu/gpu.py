"""Compile HIP source with the simulated hiprtc and run it on a simulated GPU of any arch.

Which GPUs a process simulates is settled at its first HIP call, so kernels run in a process of their own,
which has one of each.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARCHS = ("gfx942", "gfx90a", "gfx950", "gfx1100", "gfx1201")
WAVE = {arch: 32 if arch.startswith("gfx1") else 64 for arch in ARCHS}

os.environ.setdefault("HIPATTN_PLATFORM", "cpu")

from hipattn.runtime import bindings  # noqa: E402

hip, hiprtc = bindings.hip, bindings.hiprtc


@dataclass(frozen=True)
class Compiled:
    status: str
    log: str
    code: bytes
    lowered: Mapping[str, str]


def compile_source(
    source: str,
    *options: str,
    name: str = "kernel.hip",
    headers: Mapping[str, str] | None = None,
    expressions: Sequence[str] = (),
) -> Compiled:
    """Compile and return everything hiprtc has to say."""
    headers = headers or {}
    texts = [text.encode() for text in headers.values()] or None
    names = [path.encode() for path in headers] or None
    program = bindings.check(
        hiprtc.hiprtcCreateProgram(source.encode(), name.encode(), len(headers), texts, names),
        "hiprtcCreateProgram",
    )
    try:
        for expression in expressions:
            bindings.check(hiprtc.hiprtcAddNameExpression(program, expression.encode()), "hiprtcAddNameExpression")
        (status,) = hiprtc.hiprtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = bytearray(bindings.check(hiprtc.hiprtcGetProgramLogSize(program), "hiprtcGetProgramLogSize"))
        if log:
            bindings.check(hiprtc.hiprtcGetProgramLog(program, log), "hiprtcGetProgramLog")
        code, lowered = bytearray(), {}
        if not status:
            code = bytearray(bindings.check(hiprtc.hiprtcGetCodeSize(program), "hiprtcGetCodeSize"))
            bindings.check(hiprtc.hiprtcGetCode(program, code), "hiprtcGetCode")
            for expression in expressions:
                found = bindings.check(
                    hiprtc.hiprtcGetLoweredName(program, expression.encode()), "hiprtcGetLoweredName"
                )
                lowered[expression] = found.decode() if isinstance(found, bytes) else str(found)
        return Compiled(status.name, log.rstrip(b"\0").decode(), bytes(code), lowered)
    finally:
        hiprtc.hiprtcDestroyProgram(program.createRef())


@functools.cache
def compiled(source: str, arch: str) -> bytes:
    result = compile_source(source, f"--offload-arch={arch}")
    assert result.status == "HIPRTC_SUCCESS", result.log
    return result.code


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
    """Run a kernel to its end and return what the arrays then hold.

    Of the arguments, an array goes as a pointer to a copy on the device, bytes go by value.

    Raises
    ------
    GpuError
        A HIP call failed.
    """
    image = compiled(code, arch) if isinstance(code, str) else code
    try:
        return _worker().submit(_run, image, arch, arguments, kernel, grid, block, shared).result()
    except GpuError:
        _worker().shutdown()  # its GPU may be broken
        _worker.cache_clear()
        raise


class GpuError(Exception):
    pass


def _check(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status:
        raise GpuError(f"{status.name}: {hip.hipGetErrorString(status)[1]}")
    return values[0] if len(values) == 1 else values


def _run(
    image: bytes,
    arch: str,
    arguments: Sequence[NDArray[Any] | bytes],
    kernel: str,
    grid: int,
    block: int,
    shared: int,
) -> list[NDArray[Any]]:
    _check(hip.hipSetDevice(ARCHS.index(arch)))
    module = _check(hip.hipModuleLoadData(image))
    arrays = [a for a in arguments if not isinstance(a, bytes)]
    device = [_check(hip.hipMalloc(a.nbytes)) for a in arrays]
    try:
        function = _check(hip.hipModuleGetFunction(module, kernel.encode()))
        for pointer, array in zip(device, arrays, strict=True):
            _check(hip.hipMemcpy(pointer, array, array.nbytes, hip.hipMemcpyKind.hipMemcpyHostToDevice))
        pointers = iter(device)
        values = [
            ctypes.create_string_buffer(a, len(a)) if isinstance(a, bytes) else ctypes.c_void_p(int(next(pointers)))
            for a in arguments
        ]
        parameters = (ctypes.c_void_p * max(len(values), 1))(*[ctypes.addressof(v) for v in values])
        launch = hip.hipModuleLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, None, parameters, None)
        _check(launch)
        _check(hip.hipDeviceSynchronize())
        results = [np.empty_like(array) for array in arrays]
        for pointer, array in zip(device, results, strict=True):
            _check(hip.hipMemcpy(array, pointer, array.nbytes, hip.hipMemcpyKind.hipMemcpyDeviceToHost))
        return results
    finally:
        for pointer in device:
            hip.hipFree(pointer)
        hip.hipModuleUnload(module)
