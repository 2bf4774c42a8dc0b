"""The GPU architectures that hipattn can target: those that AMD's compiler knows, and NVIDIA's."""

from __future__ import annotations

from hipattn.errors import ArgumentError

__all__ = ["ARCHS", "CHECKED_ARCHS", "NVIDIA_ARCHS", "lds_limit", "wave_size"]

_WAVE64 = ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx90c", "gfx942", "gfx950")
_WAVE32 = (
    *("gfx1010", "gfx1011", "gfx1012", "gfx1030", "gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"),
    *("gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153", "gfx1200", "gfx1201"),
)
ARCHS = (*_WAVE64, *_WAVE32)

# One or more of each family: those that every kernel is compiled for, checked and reported.
CHECKED_ARCHS = (
    *("gfx906", "gfx908", "gfx90a", "gfx942", "gfx950"),
    *("gfx1030", "gfx1100", "gfx1151", "gfx1200", "gfx1201"),
)

# Architecture → KiB of shared memory that a block can have.
_SHARED_MEMORY = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_87": 163,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_103": 227,
    "sm_110": 227,
    "sm_120": 99,
    "sm_121": 99,
}
NVIDIA_ARCHS = tuple(_SHARED_MEMORY)


def wave_size(arch: str) -> int:
    """Return how many lanes of `arch` execute together: 64 before gfx10, 32 from there on and on NVIDIA's GPUs.

    Raises
    ------
    ArgumentError
        `arch` is not the name of a GPU architecture.
    """
    if arch not in ARCHS and arch not in NVIDIA_ARCHS:
        raise ArgumentError(f"arch is {arch!r}; accepted: {', '.join((*ARCHS, *NVIDIA_ARCHS))}")
    return 64 if arch in _WAVE64 else 32


def lds_limit(arch: str) -> int:
    """Return how many bytes of local memory (LDS) a block can have on `arch`."""
    if arch in _SHARED_MEMORY:
        return _SHARED_MEMORY[arch] << 10
    return 160 << 10 if arch == "gfx950" else 64 << 10
