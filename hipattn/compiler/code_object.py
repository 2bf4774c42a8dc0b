"""What a code object says of its kernels.

An AMD code object is an ELF file; its note of type 32 (NT_AMDGPU_METADATA) holds MessagePack with the key
``amdhsa.kernels`` (LLVM, User Guide for AMDGPU Backend, "Code Object V3 and Above Metadata").
"""

from __future__ import annotations

import ctypes
import io
from typing import Any

import msgpack
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from hipattn.errors import ArgumentError
from hipattn.runtime.module import Arguments

__all__ = ["check_arguments", "kernels"]

_NT_AMDGPU_METADATA = 32
_EM_AMDGPU = 224


def kernels(image: bytes) -> dict[str, dict[str, Any]]:
    """Return kernel name → metadata, empty for a code object of a simulated GPU, which has none.

    Raises
    ------
    ArgumentError
        `image` is not a whole ELF file.
    """
    try:
        elf = ELFFile(io.BytesIO(image))
        if elf.header["e_machine"] not in ("EM_AMDGPU", _EM_AMDGPU):
            return {}
        found: dict[str, dict[str, Any]] = {}
        for section in elf.iter_sections():
            if not isinstance(section, NoteSection):
                continue
            for note in section.iter_notes():
                if note["n_name"] == "AMDGPU" and note["n_type"] in (
                    _NT_AMDGPU_METADATA,
                    "NT_AMDGPU_METADATA",
                ):
                    text = note["n_descdata"]
                    metadata = msgpack.unpackb(text, strict_map_key=False)
                    found |= {kernel[".name"]: kernel for kernel in metadata["amdhsa.kernels"]}
        return found
    except (ELFError, ValueError, msgpack.UnpackException) as error:
        raise ArgumentError(f"the code object of {len(image)} bytes cannot be read: {error}") from error


def check_arguments(image: bytes, kernel: str, arguments: type[Arguments]) -> None:
    """Check that `kernel` takes one struct of the size of `arguments`. The HIP runtime itself does not.

    Raises
    ------
    ArgumentError
        The code object lacks the kernel, or the kernel takes something else.
    """
    found = kernels(image)
    if not found:
        return
    if kernel not in found:
        raise ArgumentError(f"the code object has no kernel {kernel}; it has {', '.join(found)}")
    explicit = [a for a in found[kernel].get(".args", ()) if not a[".value_kind"].startswith("hidden_")]
    layout = [(a[".value_kind"], a[".offset"], a[".size"]) for a in explicit]
    if layout != [("by_value", 0, ctypes.sizeof(arguments))]:
        raise ArgumentError(
            f"kernel {kernel} takes {layout}; {arguments.__name__} is one struct of {ctypes.sizeof(arguments)} bytes"
        )
