"""The nvidia platform: HIP, hiprtc and hipBLAS over the CUDA driver, NVRTC and cuBLAS, for NVIDIA GPUs.

HIP's kernels run there as they are, with waves of 32 lanes. What only AMD's compiler has (its builtins, its vector
extension) is not there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from hipattn import config
from hipattn.errors import PlatformError
from hipattn.platforms.build import ABI, Library, build, compiler_environment

__all__ = ["fingerprint", "libraries", "missing_device"]

SOURCE = Path(__file__).parent / "src"

_OLDEST = (8, 0)  # compute capability: bfloat16, asynchronous copies
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


def missing_device() -> str:
    """Return why there is no NVIDIA GPU, "" if there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"the NVIDIA driver was not found: {error}"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return f"the NVIDIA driver finds no GPU (CUDA status {status})"
    return ""


@functools.cache
def libraries() -> Mapping[str, Path]:
    """Compile the platform's libraries (once) and return hip-python's short name → path.

    Without a GPU kernels can be compiled all the same, for which NVRTC suffices.

    Raises
    ------
    PlatformError
        NVRTC, cuBLAS or a C++ compiler is missing, or the GPU or its driver is too old.
    """
    has_device = not missing_device()
    nvrtc = _find("nvrtc", "HIPATTN_NVIDIA_NVRTC")
    if has_device:
        _check_device()
        _check_driver(nvrtc)
    if has_device or config.get("HIPATTN_NVIDIA_CUBLAS"):
        os.environ["HIPATTN_NVIDIA_CUBLAS"] = _find("cublas", "HIPATTN_NVIDIA_CUBLAS")
    os.environ["HIPATTN_NVIDIA_NVRTC"] = nvrtc
    os.environ["HIPATTN_NVIDIA_DEVICE_INCLUDE"] = str(SOURCE / "device")
    os.environ.update(compiler_environment())
    over_runtime = {SOURCE / "hiprtc.cpp", SOURCE / "hipblas.cpp"}
    runtime = Library("libamdhip64.so", tuple(sorted({*SOURCE.glob("*.cpp"), ABI / "errors.cpp"} - over_runtime)))
    hiprtc = Library("libhiprtc.so", (SOURCE / "hiprtc.cpp",), links=(runtime.soname,))
    hipblas = Library("libhipblas.so", (SOURCE / "hipblas.cpp",), links=(runtime.soname,))
    inputs = [path for root in (SOURCE, ABI) for path in root.rglob("*") if path.suffix in (".cpp", ".h")]
    made = build("nvidia", (runtime, hiprtc, hipblas), inputs)
    return {"amdhip64": made[runtime.soname], "hiprtc": made[hiprtc.soname], "hipblas": made[hipblas.soname]}


def fingerprint(built: Mapping[str, Path]) -> str:
    """Identify the platform's build and NVRTC's."""
    nvrtc = Path(os.environ["HIPATTN_NVIDIA_NVRTC"]).resolve()
    text = f"{built['hiprtc'].parent.name}:{nvrtc.name}:{nvrtc.stat().st_size}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _find(name: str, variable: str) -> str:
    """Return where a library of CUDA is: where the variable says, or where cuda-pathfinder finds it."""
    chosen = config.get(variable)
    if chosen:
        if not Path(chosen).is_file():
            raise PlatformError(f"{variable} is {chosen!r}, which is no file")
        return str(chosen)
    install = "pip install 'hipattn[nvidia]' (CUDA 13) or 'hipattn[nvidia-cu12]' (CUDA 12)"
    try:
        from cuda import pathfinder
    except ImportError as error:
        raise PlatformError(f"the nvidia platform needs cuda-pathfinder, which is not installed: {install}") from error
    try:
        found = pathfinder.load_nvidia_dynamic_lib(name)
    except (pathfinder.DynamicLibNotFoundError, OSError) as error:
        raise PlatformError(
            f"the nvidia platform needs lib{name} of CUDA 12 or 13, which was not found: "
            f"{install}, or name it in {variable}"
        ) from error
    return str(found.abs_path)


def _check_device() -> None:
    driver = ctypes.CDLL("libcuda.so.1")
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGetName(name, len(name), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, 0)
    if (major.value, minor.value) < _OLDEST:
        raise PlatformError(
            f"device 0, {name.value.decode()}, has compute capability {major.value}.{minor.value}; hipattn needs "
            f"{_OLDEST[0]}.{_OLDEST[1]} (Ampere) or above. CUDA_VISIBLE_DEVICES chooses among several GPUs"
        )


def _check_driver(nvrtc: str) -> None:
    """Refuse a driver that cannot load what NVRTC compiles."""
    newest, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(newest))
    ctypes.CDLL(nvrtc).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if newest.value // 1000 < major.value:
        raise PlatformError(
            f"NVRTC ({nvrtc}) is of CUDA {major.value}.{minor.value}; the NVIDIA driver is for CUDA "
            f"{newest.value // 1000}.{newest.value % 1000 // 10} and does not load what it compiles: update the "
            "driver, or, for CUDA 12, pip install 'hipattn[nvidia-cu12]' and uninstall nvidia-cuda-nvrtc"
        )
