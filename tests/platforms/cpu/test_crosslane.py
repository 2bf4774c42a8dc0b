"""Each operation between lanes, for waves of 32 and 64, against a model of it in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn.errors import CompileError, HipError
from tests.platforms.cpu.simulator import ARCHS, WAVE, compiled, run

Lanes = NDArray[Any]
BOTH = ("gfx942", "gfx1100")
RDNA = ("gfx1100", "gfx1201")


Model = Callable[[Lanes, Lanes], Any]
DTYPE = {
    "int": np.int32, "unsigned": np.uint32, "float": np.float32, "double": np.float64, "long long": np.int64,
    "unsigned long long": np.uint64, "__half": np.float16,
}  # fmt: skip


def evaluate(arch: str, expressions: Sequence[str], kind: str = "int") -> tuple[Lanes, Lanes]:
    """Return (x, [expression, lane]): each expression of x in every lane of a wave."""
    x = np.random.default_rng(3).integers(1, 1000, WAVE[arch]).astype(DTYPE[kind])
    lines = "".join(f"    out[{n * WAVE[arch]} + lane] = {text};\n" for n, text in enumerate(expressions))
    code = (
        f'extern "C" __global__ void kernel(const {kind}* data, {kind}* out) {{\n'
        f"    int lane = threadIdx.x;\n    {kind} x = data[lane];\n{lines}}}\n"
    )
    _, out = run(code, arch, x, np.zeros((len(expressions), len(x)), x.dtype), block=WAVE[arch])
    return x, out


def expect(arch: str, cases: Mapping[str, Model], kind: str = "int") -> None:
    """Check each expression against its model: x and the lane's number in every lane → the value there."""
    x, out = evaluate(arch, list(cases), kind)
    for (text, model), got in zip(cases.items(), out, strict=True):
        expected = np.broadcast_to(model(x, np.arange(WAVE[arch])), x.shape).astype(x.dtype)
        np.testing.assert_array_equal(got, expected, text)


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("kind", DTYPE)
def test_shuffle_types(arch: str, kind: str) -> None:
    expect(arch, {"__shfl_xor(x, 5)": lambda x, lane: x[lane ^ 5]}, kind)


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("width", [4, 16, 32])
def test_shuffles(arch: str, width: int) -> None:
    def start(lane: Lanes) -> Lanes:
        return lane // width * width

    cases: dict[str, Model] = {
        f"__shfl(x, 2, {width})": lambda x, lane: x[start(lane) + 2],
        f"__shfl(x, lane + 1, {width})": lambda x, lane: x[start(lane) + (lane + 1) % width],
        f"__shfl_up(x, 3, {width})": lambda x, lane: x[np.where(lane % width >= 3, lane - 3, lane)],
        f"__shfl_down(x, 3, {width})": lambda x, lane: x[np.where(lane % width + 3 < width, lane + 3, lane)],
        f"__shfl_xor(x, {width - 1}, {width})": lambda x, lane: x[lane ^ (width - 1)],
        # A partner in a group above is refused; one below is read, as in AMD's header.
        f"__shfl_xor(x, 8, {min(width, 8)})": lambda x, lane: x[np.where(lane & 8, lane ^ 8, lane)],
    }
    expect(arch, cases)


@pytest.mark.parametrize("arch", BOTH)
def test_votes(arch: str) -> None:
    mask = sum(1 << lane for lane in range(0, WAVE[arch], 3))
    cases: dict[str, Model] = {
        "__ballot(lane % 3 == 0)": lambda *_: np.uint64(mask),
        "__activemask()": lambda *_: np.uint64(2 ** WAVE[arch] - 1),
        "__any(lane == 7) * 2 + __any(lane > 99)": lambda *_: 2,
        "__all(lane < 99) * 2 + __all(lane == 7)": lambda *_: 2,
        "__builtin_amdgcn_ballot_w64(lane == 1)": lambda *_: 2,
    }
    expect(arch, cases, "unsigned long long")


@pytest.mark.parametrize("arch", BOTH)
def test_lane_id(arch: str) -> None:
    cases: dict[str, Model] = {
        "__lane_id()": lambda _x, lane: lane,
        "__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0))": lambda _x, lane: lane,
        "__builtin_amdgcn_mbcnt_lo(0x11111111, 5)": lambda _x, lane: 5 + (np.minimum(lane, 32) + 3) // 4,
        "warpSize": lambda *_: WAVE[arch],
    }
    expect(arch, cases)


@pytest.mark.parametrize("arch", BOTH)
def test_inactive_lanes(arch: str) -> None:
    """Half of the wave is in the other branch: it votes for nothing and is read as zero."""
    cases: dict[str, Model] = {
        "lane % 2 ? __popcll(__ballot(1)) : -1": lambda _x, lane: np.where(lane % 2, WAVE[arch] // 2, -1),
        "lane % 2 ? __shfl(x, 0) : -1": lambda _x, lane: np.where(lane % 2, 0, -1),
        "lane >= 5 ? __builtin_amdgcn_readfirstlane(x) : 0": lambda x, lane: np.where(lane >= 5, x[5], 0),
    }
    expect(arch, cases)


@pytest.mark.parametrize("arch", BOTH)
def test_scalar_lanes(arch: str) -> None:
    cases: dict[str, Model] = {
        "__builtin_amdgcn_readlane(x, 9)": lambda x, _lane: x[9],
        "__builtin_amdgcn_readfirstlane(x)": lambda x, _lane: x[0],
        "__builtin_amdgcn_writelane(77, 9, x)": lambda x, lane: np.where(lane == 9, 77, x),
    }
    expect(arch, cases)


@pytest.mark.parametrize("arch", BOTH)
def test_lds_permutes(arch: str) -> None:
    def push(x: Lanes, lane: Lanes) -> Lanes:
        out = np.zeros_like(x)
        for at in lane:  # the highest lane wins
            out[at // 2 + 4] = x[at]
        return out

    def swizzled(x: Lanes, lane: Lanes) -> Lanes:
        return x[lane // 32 * 32 + (((lane % 32 & 0x1C) | 0x01) ^ 0x08)]

    cases: dict[str, Model] = {
        "__builtin_amdgcn_ds_bpermute(4 * (lane * 7 + 3), x)": lambda x, lane: x[(lane * 7 + 3) % WAVE[arch]],
        "__builtin_amdgcn_ds_permute(4 * (lane / 2 + 4), x)": push,
        "__builtin_amdgcn_ds_swizzle(x, 0x8000 | 0x1b)": lambda x, lane: x[lane ^ 3],  # quads reversed
        f"__builtin_amdgcn_ds_swizzle(x, {0x08 << 10 | 0x01 << 5 | 0x1C})": swizzled,
    }
    expect(arch, cases)


# DPP controls: name → (control word, the lane read or -1).
DPP = {
    "quad_perm": (0b00_01_10_11, lambda lane: lane // 4 * 4 + 3 - lane % 4),
    "row_shl": (0x103, lambda lane: np.where(lane % 16 + 3 < 16, lane + 3, -1)),
    "row_shr": (0x113, lambda lane: np.where(lane % 16 >= 3, lane - 3, -1)),
    "row_ror": (0x123, lambda lane: lane // 16 * 16 + (lane % 16 - 3) % 16),
    "row_mirror": (0x140, lambda lane: lane // 16 * 16 + 15 - lane % 16),
    "row_half_mirror": (0x141, lambda lane: lane // 8 * 8 + 7 - lane % 8),
}
DPP_GFX9 = {
    "wave_shl": (0x130, lambda lane: np.where(lane < 63, lane + 1, -1)),
    "wave_rol": (0x134, lambda lane: (lane + 1) % 64),
    "wave_shr": (0x138, lambda lane: lane - 1),
    "wave_ror": (0x13C, lambda lane: (lane - 1) % 64),
    "row_bcast15": (0x142, lambda lane: np.where(lane >= 16, lane // 16 * 16 - 1, -1)),
    "row_bcast31": (0x143, lambda lane: np.where(lane >= 32, 31, -1)),
}
DPP_RDNA = {
    "row_share": (0x155, lambda lane: lane // 16 * 16 + 5),
    "row_xmask": (0x165, lambda lane: lane ^ 5),
}


@pytest.mark.parametrize("arch", BOTH)
def test_dpp(arch: str) -> None:
    cases: dict[str, Model] = {}
    for control, source in (DPP | (DPP_RDNA if arch in RDNA else DPP_GFX9)).values():

        def read(x: Lanes, lane: Lanes, old: int = -5, source: Callable[[Lanes], Lanes] = source) -> Lanes:
            return np.where(source(lane) >= 0, x[source(lane)], old)

        def masked(x: Lanes, lane: Lanes, read: Model = read) -> Lanes:
            return np.where((lane // 16 % 2 == 1) & (lane // 4 % 4 != 2), read(x, lane), -5)

        call = f"__builtin_amdgcn_update_dpp(-5, x, {control}, "
        cases[f"{call} 0xf, 0xf, false)"] = read
        cases[f"{call} 0xa, 0xb, false)"] = masked
        if control not in (0x142, 0x143):  # lanes that no row_bcast reaches keep what they had
            cases[f"{call} 0xf, 0xf, true)"] = functools.partial(read, old=0)
    expect(arch, cases)


def test_dpp_that_the_chip_lacks() -> None:
    with pytest.raises(HipError, match="DPP control that gfx1100 does not have"):
        evaluate("gfx1100", ["__builtin_amdgcn_update_dpp(0, x, 0x142, 0xf, 0xf, false)"])


@pytest.mark.parametrize("arch", RDNA)
def test_permlane16(arch: str) -> None:
    pick = (5 * np.arange(16) + 1) % 16
    lo, hi = (sum(int(p) << 4 * n for n, p in enumerate(half)) for half in (pick[:8], pick[8:]))
    call = "__builtin_amdgcn_{}(0u, (unsigned)x, {}u, {}u, false, false)"
    cases: dict[str, Model] = {
        call.format("permlane16", lo, hi): lambda x, lane: x[lane // 16 * 16 + pick[lane % 16]],
        call.format("permlanex16", 0x76543210, 0xFEDCBA98): lambda x, lane: x[lane ^ 16],
        call.format("permlanex16", lo, hi): lambda x, lane: x[(lane ^ 16) // 16 * 16 + pick[lane % 16]],
    }
    expect(arch, cases)


@pytest.mark.parametrize("distance", [16, 32])
def test_permlane_swap(distance: int) -> None:
    """a's odd rows (upper half) and b's even rows (lower half) change places; b is x + 1000."""
    call = f"__builtin_amdgcn_permlane{distance}_swap(x, x + 1000, false, false)"
    cases: dict[str, Model] = {
        f"{call}[0]": lambda x, lane: np.where(lane & distance, x[lane ^ distance] + 1000, x),
        f"{call}[1]": lambda x, lane: np.where(lane & distance, x + 1000, x[lane ^ distance]),
    }
    expect("gfx950", cases, "unsigned")


@pytest.mark.parametrize("arch", ARCHS)
def test_only_where_the_chip_has_it(arch: str) -> None:
    homes = {
        "__builtin_amdgcn_permlane16(0, x, 0, 0, 0, 0)": RDNA,
        "__builtin_amdgcn_permlanex16(0, x, 0, 0, 0, 0)": RDNA,
        "__builtin_amdgcn_permlane16_swap(x, x, 0, 0)[0]": ("gfx950",),
        "__builtin_amdgcn_permlane32_swap(x, x, 0, 0)[0]": ("gfx950",),
        "__builtin_amdgcn_ballot_w32(x)": RDNA,
    }
    lines = "".join(f"    *p += {text};\n" for text in homes)
    with pytest.raises(CompileError) as caught:
        compiled(f"__global__ void kernel(unsigned* p) {{\n    unsigned x = *p;\n{lines}}}", arch)
    for text, archs in homes.items():
        assert (f"'{text.split('(')[0]}' needs target feature" in caught.value.log) == (arch not in archs)


@pytest.mark.parametrize("arch", BOTH)
def test_bytes_and_bits(arch: str) -> None:
    cases: dict[str, Model] = {
        "__builtin_amdgcn_perm(0x77665544, 0x33221100, 0x0c070500u)": lambda *_: 0x00775500,
        "__builtin_amdgcn_ubfe(x, 3, 5)": lambda x, _lane: x >> 3 & 31,
        "__builtin_amdgcn_sbfe(x, 3, 5)": lambda x, _lane: (x >> 3 & 31) - ((x >> 7 & 1) << 5),
    }
    expect(arch, cases)


@pytest.mark.parametrize("arch", BOTH)
def test_waves_are_apart(arch: str) -> None:
    code = """
    extern "C" __global__ void kernel(int* p) {
        p[threadIdx.x] = __shfl(p[threadIdx.x], 0) + __popcll(__ballot(1));
    }"""
    count = 2 * WAVE[arch] + 7  # the last wave is not whole
    values = np.arange(count, dtype=np.int32)
    (result,) = run(code, arch, values, block=count)
    first = values // WAVE[arch] * WAVE[arch]
    np.testing.assert_array_equal(result, first + np.minimum(WAVE[arch], count - first))
