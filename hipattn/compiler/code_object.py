"""What a code object says of its kernels, and whether that is what they are launched with.

An AMD code object is an ELF file; its note of type 32 (NT_AMDGPU_METADATA) holds MessagePack with the key
``amdhsa.kernels`` (LLVM, User Guide for AMDGPU Backend, "Code Object V3 and Above Metadata").
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from hipattn.compiler.specialise import Specialisation
from hipattn.compiler.target import lds_limit, wave_size
from hipattn.errors import CodeObjectError

__all__ = ["Argument", "KernelMetadata", "check", "kernels"]

_NT_AMDGPU_METADATA = 32
_EM_AMDGPU = 224


class Argument(NamedTuple):
    """An argument in a kernel's argument block: its kind ("by_value", ...), and where it is, in bytes."""

    kind: str
    offset: int
    size: int


@dataclass(frozen=True)
class KernelMetadata:
    """A kernel as the compiler left it.

    Attributes
    ----------
    name : str
    arguments : tuple of Argument
        Those that the source declares; the compiler may add hidden ones.
    vgprs, agprs, sgprs : int
        Registers; vgprs counts the agprs where the two are one file (gfx90a and later).
    vgpr_spills, sgpr_spills : int
        Registers that did not fit.
    scratch : int
        Bytes of memory that each thread has in place of registers.
    lds : int
        Static local memory of a block, in bytes.
    max_threads : int
        The largest block that it may be launched with.
    wave_size : int
    """

    name: str
    arguments: tuple[Argument, ...]
    vgprs: int
    agprs: int
    sgprs: int
    vgpr_spills: int
    sgpr_spills: int
    scratch: int
    lds: int
    max_threads: int
    wave_size: int

    @property
    def spills(self) -> bool:
        """Whether the kernel keeps in memory what it meant to keep in registers: right, but slow."""
        return bool(self.vgpr_spills or self.sgpr_spills or self.scratch)

    @classmethod
    def parse(cls, metadata: Mapping[str, Any]) -> KernelMetadata:
        """Return an entry of ``amdhsa.kernels``."""
        arguments = (Argument(a[".value_kind"], a[".offset"], a[".size"]) for a in metadata.get(".args", ()))
        return cls(
            name=metadata[".name"],
            arguments=tuple(a for a in arguments if not a.kind.startswith("hidden_")),
            vgprs=metadata[".vgpr_count"],
            agprs=metadata.get(".agpr_count", 0),
            sgprs=metadata[".sgpr_count"],
            vgpr_spills=metadata.get(".vgpr_spill_count", 0),
            sgpr_spills=metadata.get(".sgpr_spill_count", 0),
            scratch=metadata[".private_segment_fixed_size"],
            lds=metadata[".group_segment_fixed_size"],
            max_threads=metadata[".max_flat_workgroup_size"],
            wave_size=metadata[".wavefront_size"],
        )


def kernels(image: bytes) -> dict[str, KernelMetadata]:
    """Return kernel name → metadata, empty for a code object of a simulated GPU, which has none.

    Raises
    ------
    CodeObjectError
        `image` is not a whole code object.
    """
    try:
        elf = ELFFile(io.BytesIO(image))
        if elf.header["e_machine"] not in ("EM_AMDGPU", _EM_AMDGPU):
            return {}
        entries = [
            entry
            for section in elf.iter_sections()
            if isinstance(section, NoteSection)
            for note in section.iter_notes()
            if note["n_name"] == "AMDGPU" and note["n_type"] in (_NT_AMDGPU_METADATA, "NT_AMDGPU_METADATA")
            for entry in msgpack.unpackb(note["n_descdata"], strict_map_key=False)["amdhsa.kernels"]
        ]
        return {kernel.name: kernel for kernel in map(KernelMetadata.parse, entries)}
    except Exception as error:  # pyelftools raises what its parsing happens to meet
        raise CodeObjectError(f"the code object of {len(image)} bytes cannot be read: {error}") from error


def check(image: bytes, specialisation: Specialisation, arch: str) -> KernelMetadata | None:
    """Check that a code object's kernel fits the launches that it is for. The HIP runtime itself does not.

    Returns
    -------
    metadata : KernelMetadata or None
        The kernel's, None if the code object is a simulated GPU's.

    Raises
    ------
    CodeObjectError
        The kernel is not there, does not take one struct as Python declares it, is compiled for another block or
        wave, or needs more local memory than a block of `arch` has.
    """
    found = kernels(image)
    if not found:
        return None
    name = specialisation.name
    kernel = found.get(specialisation.kernel)
    if kernel is None:
        raise CodeObjectError(f"{name}: there is no kernel {specialisation.kernel}, only {', '.join(found)}")
    struct = specialisation.arguments
    size = ctypes.sizeof(struct)
    if kernel.arguments != (("by_value", 0, size),):
        takes = ", ".join(f"{kind} of {nbytes} bytes at {offset}" for kind, offset, nbytes in kernel.arguments)
        raise CodeObjectError(f"{name} takes {takes or 'nothing'}; {struct.__name__} is one struct of {size} bytes")
    block = specialisation.constants.get("BLOCK", kernel.max_threads)
    if kernel.max_threads != block:
        raise CodeObjectError(f"{name} is compiled for {kernel.max_threads} threads a block and launched with {block}")
    if kernel.wave_size != wave_size(arch):
        raise CodeObjectError(f"{name} has waves of {kernel.wave_size}; on {arch} they are of {wave_size(arch)}")
    if kernel.lds > lds_limit(arch):
        raise CodeObjectError(f"{name} needs {kernel.lds} bytes of LDS; a block on {arch} has {lds_limit(arch)}")
    return kernel
