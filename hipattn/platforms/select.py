"""Choose the platform: which libraries hip-python opens on this machine."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hipattn import config
from hipattn.errors import PlatformError
from hipattn.platforms import cpu, nvidia

__all__ = ["Platform", "choose", "rocm_library"]

log = logging.getLogger("hipattn")

FindLibrary = Callable[[str], bytes]


@dataclass(frozen=True)
class Platform:
    """A set of libraries that hip-python opens.

    Attributes
    ----------
    name : str
        "amd" (ROCm's libraries), "nvidia" (ours over CUDA's) or "cpu" (a simulated AMD GPU over host memory).
    libraries : mapping of str to Path
        Short name ("amdhip64") → the library to open. What is not in it is found as hip-python finds it.
    fingerprint : str
        Changes when the platform compiles differently: part of the compile cache's key.
    reason : str
        Why it was chosen.
    """

    name: str
    libraries: Mapping[str, Path] = field(default_factory=dict)
    fingerprint: str = ""
    reason: str = ""

    @property
    def simulated(self) -> bool:
        """Whether kernels run on a simulated GPU: right or wrong is meaningful there, time is not."""
        return self.name == "cpu"


def choose(find_rocm_library: FindLibrary) -> Platform:
    """Return the platform that HIPATTN_PLATFORM names, or the first that finds a device.

    A platform that is named needs no device: compiling for one does not either.

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
    named, problem = f"HIPATTN_PLATFORM is {wanted}", ""
    if wanted in ("auto", "amd"):
        problem = _missing_library(find_rocm_library)
        if not problem and wanted == "auto":
            problem = _missing_device(find_rocm_library)
        if not problem:
            fingerprint = _identity(rocm_library(find_rocm_library, "hiprtc"))
            return Platform("amd", {}, fingerprint, "ROCm finds an AMD GPU" if wanted == "auto" else named)
        if wanted == "amd":
            raise PlatformError(f"{named}, but {problem}")
    if wanted == "nvidia" or (wanted == "auto" and not nvidia.missing_device()):
        try:
            libraries = nvidia.libraries()
            reason = named if wanted == "nvidia" else f"{problem}; the NVIDIA driver finds a GPU"
            return Platform("nvidia", libraries, nvidia.fingerprint(libraries), reason)
        except PlatformError as error:
            if wanted == "nvidia":
                raise PlatformError(f"{named}, but {error}") from error
            problem += f"; there is an NVIDIA GPU, but {error}"
    if wanted == "auto":
        log.warning("hipattn simulates an AMD GPU on the CPU (slow, for development): %s", problem)
    try:
        libraries = cpu.libraries()
    except PlatformError as error:
        raise PlatformError(f"{problem}; {error}" if problem else str(error)) from error
    return Platform("cpu", libraries, cpu.fingerprint(libraries), problem or named)


# The versions in the names that ROCm 7 and 6 install. The plain name is a distribution's development package.
_VERSIONS: dict[str, tuple[str, ...]] = {"amdhip64": (".7", ".6"), "hiprtc": (".7", ".6"), "hipblas": (".3", ".2")}


def rocm_library(find: FindLibrary, shortname: str) -> str:
    """Return where ROCm's library is: where `find` expects it, or beside that under a name with its version."""
    expected = os.fsdecode(find(shortname))
    for version in ("", *_VERSIONS.get(shortname, ())):
        try:
            ctypes.CDLL(expected + version)
        except OSError:
            continue
        return expected + version
    return expected


def _missing_library(find: FindLibrary) -> str:
    """Return which library is missing for compiling and launching, "" if none is."""
    for shortname in ("amdhip64", "hiprtc"):
        try:
            ctypes.CDLL(rocm_library(find, shortname))
        except OSError as error:
            return f"ROCm's lib{shortname} was not found (ROCM_PATH names where ROCm is): {error}"
    return ""


def _missing_device(find: FindLibrary) -> str:
    """Return why there is no device, "" if there is one."""
    path = rocm_library(find, "amdhip64")
    count = ctypes.c_int(0)
    status = ctypes.CDLL(path).hipGetDeviceCount(ctypes.byref(count))
    if status or not count.value:
        return f"ROCm ({path}) finds no AMD GPU (hipGetDeviceCount: status {status})"
    return ""


def _identity(library: str) -> str:
    """Identify a library that is loaded by its bytes: what one machine compiled serves another with the same ROCm."""
    path = Path(library)
    if not path.is_absolute():
        maps = Path("/proc/self/maps").read_text()
        found = re.search(rf"/\S*/{re.escape(path.name)}\S*$", maps, re.MULTILINE)
        path = Path(found[0]) if found else path
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]
