"""The cpu platform: HIP, hiprtc and hipBLAS over host memory, for a simulated AMD GPU.

It proves logic, memory layouts, indexing and synchronisation. It proves nothing about speed or about what AMD's
compiler makes of a kernel.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path

from hipattn import config
from hipattn.errors import PlatformError
from hipattn.platforms.build import ABI, Library, build, compiler, compiler_environment

__all__ = ["fingerprint", "libraries"]

SOURCE = Path(__file__).parent / "src"


@functools.cache
def libraries() -> Mapping[str, Path]:
    """Compile the platform's libraries (once) and return hip-python's short name → path.

    Raises
    ------
    PlatformError
        The C++ compiler or the BLAS is missing.
    ConfigError
        A HIPATTN_CPU_* variable has a value that is not accepted.
    """
    for name in config.VARIABLES:
        config.get(name)
    os.environ.setdefault("HIPATTN_CPU_ARCH", ",".join(config.get("HIPATTN_CPU_ARCH")))
    os.environ["HIPATTN_CPU_BLAS"] = str(_blas())
    os.environ["HIPATTN_CPU_CXX_COMMAND"] = shlex.join(compiler())
    os.environ["HIPATTN_CPU_DEVICE_INCLUDE"] = str(SOURCE / "device")
    os.environ.update(compiler_environment())
    over_runtime = {SOURCE / "hiprtc.cpp", SOURCE / "hipblas.cpp"}
    runtime = Library("amdhip64", tuple(sorted(set(SOURCE.glob("*.cpp")) - over_runtime)))
    hiprtc = Library("hiprtc", (SOURCE / "hiprtc.cpp",), links=(runtime.name,))
    hipblas = Library("hipblas", (SOURCE / "hipblas.cpp",), links=(runtime.name,))
    inputs = [path for root in (SOURCE, ABI) for path in root.rglob("*") if path.suffix in (".cpp", ".h")]
    return build("cpu", (runtime, hiprtc, hipblas), inputs)


def fingerprint(built: Mapping[str, Path]) -> str:
    """Identify the simulator's build and the CPU that its compiler targets."""
    text = f"{built['hiprtc'].parent.name}:{platform.machine()}"
    info = Path("/proc/cpuinfo")
    if info.exists():
        flags = [line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))]
        text += ":".join(flags[:1])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _blas() -> Path:
    if importlib.util.find_spec("scipy_openblas32") is None:
        raise PlatformError(
            "the cpu platform needs a BLAS and scipy-openblas32 is not installed: pip install 'hipattn[cpu]'"
        )
    import scipy_openblas32

    return Path(scipy_openblas32.get_lib_dir()) / f"lib{scipy_openblas32.get_library()}.so"
