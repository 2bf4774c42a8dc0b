"""What the hardware reserves for a kernel, from its descriptor.

The descriptor is 64 bytes under the symbol ``<kernel>.kd`` (LLVM, User Guide for AMDGPU Backend, "Kernel
Descriptor"). A bound on waves per SIMD makes it reserve more registers than the code uses.
"""

from __future__ import annotations

import io
import struct

from elftools.elf.elffile import ELFFile

from hipattn.errors import CodeObjectError

__all__ = ["allocated_vgprs"]

_RSRC1 = 48  # where compute_pgm_rsrc1 is; its lowest 6 bits are granulated_workitem_vgpr_count


def allocated_vgprs(image: bytes, kernel: str, arch: str) -> int:
    """Return how many VGPRs a lane of `kernel` has, AGPRs included where the two are one file.

    Raises
    ------
    CodeObjectError
        The code object has no such descriptor.
    """
    elf = ELFFile(io.BytesIO(image))
    symbols = elf.get_section_by_name(".dynsym")
    found = symbols.get_symbol_by_name(f"{kernel}.kd") if symbols else None
    if not found:
        raise CodeObjectError(f"the code object has no descriptor of {kernel}")
    offset = next(elf.address_offsets(found[0]["st_value"]))
    rsrc1: int = struct.unpack_from("<I", image, offset + _RSRC1)[0]
    granule = 4 if arch in ("gfx900", "gfx906", "gfx908", "gfx90c") else 8
    return ((rsrc1 & 63) + 1) * granule
