"""One module per kernel family, of the name of its source in kernels_src: argument struct, specialisation, launch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from hipattn.compiler.specialise import Specialisation

__all__ = ["FAMILIES", "defaults"]

_NAMES = (
    "activation",
    "add",
    "block_mask",
    "causal_mask",
    "confine",
    "convert",
    "embedding",
    "flash_decode",
    "flash_fwd",
    "kv_append",
    "norm",
    "page_copy",
    "paged_append",
    "rope",
    "rope_append",
    "sample",
    "scale",
    "softmax",
)
FAMILIES = tuple(import_module(f"{__name__}.{name}") for name in _NAMES)


def defaults(arch: str) -> Iterator[Specialisation]:
    """Return every kernel that the library asks for on `arch` as long as rows are aligned and options not set.

    Raises
    ------
    ArgumentError
        `arch` is not known.
    """
    for family in FAMILIES:
        yield from family.defaults(arch)
