"""How many waves of a kernel a SIMD holds at once.

The rules are those by which LLVM itself reckons: ``llvm/lib/Target/AMDGPU/Utils/AMDGPUBaseInfo.cpp``, the functions
named below, and the features of each chip in ``AMDGPU.td``.
"""

from __future__ import annotations

from typing import NamedTuple

from hipattn.compiler.target import wave_size

__all__ = ["waves_per_simd"]


class _Simd(NamedTuple):
    vgprs: int  # of each lane, AGPRs included where they are one file (getTotalNumVGPRs)
    granule: int  # they are given out in multiples of this (getVGPRAllocGranule)
    waves: int  # at most (getMaxWavesPerEU)


_UNIFIED_AGPRS = ("gfx90a", "gfx942", "gfx950")  # FeatureGFX90AInsts
_MORE_VGPRS = ("gfx1100", "gfx1101", "gfx1151", "gfx1200", "gfx1201")  # Feature1536VGPRs
_SGPRS = 800  # of a SIMD of gfx9, in granules of 16; from gfx10 on every wave has all it can name

# A workgroup lives on one CU (gfx9) or WGP (from gfx10 on, unless compiled for CU mode): 4 SIMDs either way.
_SIMDS = 4  # getEUsPerCU


def waves_per_simd(arch: str, *, threads: int, vgprs: int, sgprs: int, lds: int) -> float:
    """Return how many waves a SIMD holds, on average over the SIMDs that a workgroup is spread over.

    Parameters
    ----------
    arch
        "gfx942".
    threads
        Of a workgroup.
    vgprs
        That a lane has: VGPRs and AGPRs together where the chip has one file for both, else the more of the two.
    sgprs
        That a wave has.
    lds
        Bytes that a workgroup has.

    Raises
    ------
    ArgumentError
        `arch` is not known.
    """
    waves = -(-threads // wave_size(arch))
    slots = _SIMDS * _by_registers(arch, vgprs, sgprs)
    workgroups = slots // waves
    if waves > 1:  # a workgroup of one wave needs no barrier (getMaxWorkGroupsPerCU)
        workgroups = min(workgroups, 16 if _is_gfx9(arch) else 32)
    if lds:
        total, granule = _lds(arch)
        workgroups = min(workgroups, total // (-(-lds // granule) * granule))
    return workgroups * waves / _SIMDS


def _by_registers(arch: str, vgprs: int, sgprs: int) -> int:
    simd = _simd(arch)
    waves = min(simd.waves, simd.vgprs // (-(-max(1, vgprs) // simd.granule) * simd.granule))
    if _is_gfx9(arch):
        waves = min(waves, _SGPRS // (-(-max(1, sgprs) // 16) * 16))
    return waves


def _simd(arch: str) -> _Simd:
    if arch in _UNIFIED_AGPRS:
        return _Simd(512, 8, 8)
    if _is_gfx9(arch):
        return _Simd(256, 4, 10)
    if arch.startswith("gfx101"):
        return _Simd(1024, 8, 20)
    return _Simd(1536, 24, 16) if arch in _MORE_VGPRS else _Simd(1024, 16, 16)


def _lds(arch: str) -> tuple[int, int]:
    """Return (bytes of LDS that 4 SIMDs share, the granule it is given out in) (getLdsDwGranularity)."""
    if arch == "gfx950":
        return 160 * 1024, 1280
    return (64 if _is_gfx9(arch) else 128) * 1024, 512


def _is_gfx9(arch: str) -> bool:
    return wave_size(arch) == 64
