"""The GPU architectures that AMD's compiler knows and hipattn can target."""

from __future__ import annotations

from hipattn.errors import ArgumentError

__all__ = ["ARCHS", "lds_limit", "wave_size"]

_WAVE64 = ("gfx900", "gfx906", "gfx908", "gfx90a", "gfx90c", "gfx942", "gfx950")
_WAVE32 = (
    *(
        "gfx1010",
        "gfx1011",
        "gfx1012",
        "gfx1030",
        "gfx1031",
        "gfx1032",
        "gfx1033",
        "gfx1034",
        "gfx1035",
        "gfx1036",
    ),
    *(
        "gfx1100",
        "gfx1101",
        "gfx1102",
        "gfx1103",
        "gfx1150",
        "gfx1151",
        "gfx1152",
        "gfx1153",
        "gfx1200",
        "gfx1201",
    ),
)
ARCHS = (*_WAVE64, *_WAVE32)


def wave_size(arch: str) -> int:
    """Return how many lanes of `arch` execute together: 64 before gfx10, 32 from there on.

    Raises
    ------
    ArgumentError
        `arch` is not the name of an AMD GPU architecture.
    """
    if arch not in ARCHS:
        raise ArgumentError(f"arch is {arch!r}; accepted: {', '.join(ARCHS)}")
    return 64 if arch in _WAVE64 else 32


def lds_limit(arch: str) -> int:
    """Return how many bytes of local memory (LDS) a block can have on `arch`."""
    return 160 << 10 if arch == "gfx950" else 64 << 10
