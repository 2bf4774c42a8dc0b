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
_OLDEST_CUDA = 12
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute

_INSTALL = "pip install 'hipattn[nvidia]' (CUDA 13) or 'hipattn[nvidia-cu12]' (CUDA 12)"


def missing_device() -> str:
    """Return why there is no NVIDIA GPU, "" if there is one."""
    try:
        driver = _driver()
    except OSError as error:
        return f"the NVIDIA driver was not found: {error}"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        sentence = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(sentence))
        said = (sentence.value or b"unknown error").decode()
        return f"the NVIDIA driver finds no GPU (CUDA status {status}: {said})"
    return "" if count.value else "the NVIDIA driver finds no GPU"


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
        _check_compiler(nvrtc, _check_device())
    if has_device or config.get("HIPATTN_NVIDIA_CUBLAS"):
        os.environ["HIPATTN_NVIDIA_CUBLAS"] = _find("cublas", "HIPATTN_NVIDIA_CUBLAS")
    os.environ["HIPATTN_NVIDIA_NVRTC"] = nvrtc
    os.environ["HIPATTN_NVIDIA_DEVICE_INCLUDE"] = str(SOURCE / "device")
    os.environ.update(compiler_environment())
    over_runtime = {SOURCE / "hiprtc.cpp", SOURCE / "hipblas.cpp"}
    runtime = Library("amdhip64", tuple(sorted({*SOURCE.glob("*.cpp"), ABI / "errors.cpp"} - over_runtime)))
    hiprtc = Library("hiprtc", (SOURCE / "hiprtc.cpp",), links=(runtime.name,))
    hipblas = Library("hipblas", (SOURCE / "hipblas.cpp",), links=(runtime.name,))
    inputs = [path for root in (SOURCE, ABI) for path in root.rglob("*") if path.suffix in (".cpp", ".h")]
    return build("nvidia", (runtime, hiprtc, hipblas), inputs)


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
    try:
        from cuda import pathfinder
    except ImportError as error:
        raise PlatformError(f"the nvidia platform needs cuda-pathfinder, which is not installed: {_INSTALL}") from error
    try:
        found = pathfinder.load_nvidia_dynamic_lib(name)
    except (pathfinder.DynamicLibNotFoundError, OSError) as error:
        raise PlatformError(
            f"the nvidia platform needs lib{name} of CUDA 12 or 13, which was not found: "
            f"{_INSTALL}, or name it in {variable}"
        ) from error
    return str(found.abs_path)


def _driver() -> ctypes.CDLL:
    # The variable is for tests; driver.cpp reads it too.
    return ctypes.CDLL(os.environ.get("HIPATTN_NVIDIA_CUDA") or "libcuda.so.1")


def _check_device() -> str:
    """Refuse a GPU that the kernels do not run on. Return what it is and its architecture: "NVIDIA H100, sm_90"."""
    driver, found = _driver(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGetName(found, len(found), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, 0)
    name = found.value.decode()
    if (major.value, minor.value) < _OLDEST:
        raise PlatformError(
            f"device 0, {name}, has compute capability {major.value}.{minor.value}; hipattn needs "
            f"{_OLDEST[0]}.{_OLDEST[1]} (Ampere) or above. CUDA_VISIBLE_DEVICES chooses among several GPUs"
        )
    return f"{name}, sm_{major.value}{minor.value}"


def _check_compiler(path: str, device: str) -> None:
    """Refuse an NVRTC that does not compile for the GPU, and a driver that cannot load what NVRTC compiles."""
    try:
        nvrtc = ctypes.CDLL(path)
        major, minor, count = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
        nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        version = f"NVRTC ({path}) is of CUDA {major.value}.{minor.value}"
        if major.value < _OLDEST_CUDA:
            raise PlatformError(f"{version}; hipattn needs CUDA {_OLDEST_CUDA} or newer: {_INSTALL}")
        nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        archs = (ctypes.c_int * count.value)()
        nvrtc.nvrtcGetSupportedArchs(archs)
    except (OSError, AttributeError) as error:
        raise PlatformError(f"{path} is no NVRTC of CUDA 12 or newer: {error}") from error
    wanted = int(device.rpartition("sm_")[2])
    if wanted not in archs:
        raise PlatformError(
            f"{version} and compiles for sm_{min(archs, default=0)} to sm_{max(archs, default=0)}; device 0 is "
            f"{device}: a newer one is needed, {_INSTALL}"
        )
    newest = ctypes.c_int(0)
    _driver().cuDriverGetVersion(ctypes.byref(newest))
    if newest.value // 1000 < major.value:
        raise PlatformError(
            f"{version}; the NVIDIA driver is for CUDA {newest.value // 1000}.{newest.value % 1000 // 10} and does not "
            "load what it compiles: update the driver, or, for CUDA 12, pip install 'hipattn[nvidia-cu12]' and "
            "uninstall nvidia-cuda-nvrtc"
        )
