"""Choose the platform: which libraries hip-python opens on this machine."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hipattn import config
from hipattn.errors import PlatformError
from hipattn.platforms import cpu

__all__ = ["Platform", "choose"]

log = logging.getLogger("hipattn")

FindLibrary = Callable[[str], bytes]


@dataclass(frozen=True)
class Platform:
    """A set of libraries that hip-python opens.

    Attributes
    ----------
    name : str
        "amd" (ROCm's libraries) or "cpu" (a simulated AMD GPU over host memory).
    libraries : mapping of str to Path
        Short name ("amdhip64") → the library to open. What is not in it is found as hip-python finds it.
    fingerprint : str
        Changes when the platform compiles differently: part of the compile cache's key.
    """

    name: str
    libraries: Mapping[str, Path] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def simulated(self) -> bool:
        """Whether kernels run on a simulated GPU: right or wrong is meaningful there, time is not."""
        return self.name == "cpu"


def choose(find_rocm_library: FindLibrary) -> Platform:
    """Return the platform that HIPATTN_PLATFORM names, or the first that finds a device.

    Parameters
    ----------
    find_rocm_library
        Returns where ROCm's library of a short name is expected, as hip-python's own ``get_library_path``.

    Raises
    ------
    PlatformError
        The platform that was asked for cannot be used; the message says what is missing.
    """
    wanted = config.get("HIPATTN_PLATFORM")
    if wanted in ("auto", "amd"):
        problem = _amd_problem(find_rocm_library)
        if problem is None:
            return Platform("amd", fingerprint=_file_identity(find_rocm_library("hiprtc")))
        if wanted == "amd":
            raise PlatformError(f"HIPATTN_PLATFORM is amd, but {problem}")
        log.warning("%s; using the cpu platform, which simulates one (slow, for development)", problem)
    libraries = cpu.libraries()
    return Platform("cpu", libraries, fingerprint=cpu.fingerprint(libraries))


def _amd_problem(find_rocm_library: FindLibrary) -> str | None:
    """Return why ROCm cannot be used here, or None when it found a GPU."""
    path = os.fsdecode(find_rocm_library("amdhip64"))
    try:
        runtime = ctypes.CDLL(path)
    except OSError:
        return "ROCm's libamdhip64 was not found (ROCM_PATH names where ROCm is)"
    count = ctypes.c_int(0)
    status = runtime.hipGetDeviceCount(ctypes.byref(count))
    if status or not count.value:
        return f"ROCm ({path}) finds no AMD GPU (hipGetDeviceCount: status {status})"
    return None


def _file_identity(library: bytes) -> str:
    """Identify a library by path, size and time; a bare name that the loader resolves stands for itself."""
    path = Path(os.fsdecode(library)).resolve()
    if not path.exists():
        return str(path.name)
    stat = path.stat()
    return hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:20]
