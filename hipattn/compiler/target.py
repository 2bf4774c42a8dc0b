"""The GPU architectures that hipattn compiles for."""

from __future__ import annotations

import re

from hipattn.errors import ArgumentError

__all__ = ["ARCHS", "wave_size"]

ARCHS = (
    *("gfx906", "gfx908", "gfx90a", "gfx942", "gfx950"),
    *("gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1200", "gfx1201"),
)


def wave_size(arch: str) -> int:
    """Return how many lanes of `arch` execute together: 64 before gfx10, 32 from there on.

    Raises
    ------
    ArgumentError
        `arch` is not the name of an AMD GPU architecture.
    """
    match = re.fullmatch(r"gfx(\d+)[0-9a-f]{2}", arch)
    if not match:
        raise ArgumentError(f"arch is {arch!r}; it takes the name of an AMD GPU architecture, for example gfx942")
    return 64 if int(match[1]) < 10 else 32
