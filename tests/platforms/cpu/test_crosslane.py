"""Each operation between lanes, for waves of 32 and 64, against a model of it in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.platforms.cpu.gpu import ARCHS, WAVE, compile, run

Lanes = NDArray[Any]
BOTH = ("gfx942", "gfx1100")
RDNA = ("gfx1100", "gfx1201")


def lanes(arch: str) -> Lanes:
    return np.arange(WAVE[arch])


def evaluate(expression: str, arch: str, kind: str = "int", values: Lanes | None = None) -> tuple[Lanes, Lanes]:
    """Return (x, the expression of x) in every lane of a wave."""
    dtype = {"int": np.int32, "unsigned": np.uint32, "float": np.float32, "double": np.float64, "long long": np.int64}.get(
        kind, np.uint64 if kind == "unsigned long long" else np.float16
    )
    x = np.random.default_rng(3).integers(1, 1000, WAVE[arch]) if values is None else values
    x = x.astype(dtype)
    code = (
        f'extern "C" __global__ void kernel({kind}* data) {{\n'
        f"    int lane = threadIdx.x;\n    {kind} x = data[lane];\n    data[lane] = {expression};\n}}\n"
    )
    (result,) = run(code, arch, x, block=WAVE[arch])
    return x, result


def expect(expression: str, arch: str, model: Callable[[Lanes, Lanes], Any], kind: str = "int") -> None:
    x, result = evaluate(expression, arch, kind)
    np.testing.assert_array_equal(result, np.asarray(model(x, lanes(arch))).astype(x.dtype))


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("kind", ["int", "unsigned", "float", "double", "long long", "unsigned long long", "__half"])
def test_shuffle_types(arch: str, kind: str) -> None:
    expect("__shfl_xor(x, 5)", arch, lambda x, lane: x[lane ^ 5], kind)


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("width", [4, 16, 32])
def test_shuffles(arch: str, width: int) -> None:
    def within(lane: Lanes) -> tuple[Lanes, Lanes]:
        return lane // width * width, lane % width

    def up(x: Lanes, lane: Lanes) -> Lanes:
        start, at = within(lane)
        return x[start + np.where(at >= 3, at - 3, at)]

    def down(x: Lanes, lane: Lanes) -> Lanes:
        start, at = within(lane)
        return x[start + np.where(at + 3 < width, at + 3, at)]

    expect(f"__shfl(x, 2, {width})", arch, lambda x, lane: x[lane // width * width + 2])
    expect(f"__shfl(x, lane + 1, {width})", arch, lambda x, lane: x[lane // width * width + (lane + 1) % width])
    expect(f"__shfl_up(x, 3, {width})", arch, up)
    expect(f"__shfl_down(x, 3, {width})", arch, down)
    expect(f"__shfl_xor(x, {width - 1}, {width})", arch, lambda x, lane: x[lane ^ (width - 1)])


@pytest.mark.parametrize("arch", BOTH)
def test_xor_beyond_the_width_keeps_the_lane(arch: str) -> None:
    # A partner above the group is refused; one below is read, as in AMD's header.
    expect("__shfl_xor(x, 8, 8)", arch, lambda x, lane: x[np.where(lane & 8, lane ^ 8, lane)])


@pytest.mark.parametrize("arch", BOTH)
def test_votes(arch: str) -> None:
    mask = sum(1 << lane for lane in range(0, WAVE[arch], 3))
    kind = "unsigned long long"
    expect("__ballot(lane % 3 == 0)", arch, lambda x, lane: np.full(lane.shape, mask, np.uint64), kind)
    expect("__activemask()", arch, lambda x, lane: np.full(lane.shape, 2 ** WAVE[arch] - 1, np.uint64), kind)
    expect("__any(lane == 7) * 2 + __any(lane > 99)", arch, lambda x, lane: 0 * lane + 2)
    expect("__all(lane < 99) * 2 + __all(lane == 7)", arch, lambda x, lane: 0 * lane + 2)
    expect("__builtin_amdgcn_ballot_w64(lane == 1)", arch, lambda x, lane: 0 * lane + 2, kind)


@pytest.mark.parametrize("arch", BOTH)
def test_lane_id(arch: str) -> None:
    expect("__lane_id()", arch, lambda x, lane: lane)
    expect("__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0))", arch, lambda x, lane: lane)
    expect("__builtin_amdgcn_mbcnt_lo(0x11111111, 5)", arch, lambda x, lane: 5 + (np.minimum(lane, 32) + 3) // 4)
    expect("warpSize", arch, lambda x, lane: 0 * lane + WAVE[arch])


@pytest.mark.parametrize("arch", BOTH)
def test_inactive_lanes(arch: str) -> None:
    # Half of the wave is in the other branch: it votes for nothing and is read as zero.
    expect("lane % 2 ? __popcll(__ballot(1)) : -1", arch, lambda x, lane: np.where(lane % 2, WAVE[arch] // 2, -1))
    expect("lane % 2 ? __shfl(x, 0) : -1", arch, lambda x, lane: np.where(lane % 2, 0, -1))
    expect("lane >= 5 ? __builtin_amdgcn_readfirstlane(x) : 0", arch, lambda x, lane: np.where(lane >= 5, x[5], 0))


@pytest.mark.parametrize("arch", BOTH)
def test_scalar_lanes(arch: str) -> None:
    expect("__builtin_amdgcn_readlane(x, 9)", arch, lambda x, lane: 0 * lane + x[9])
    expect("__builtin_amdgcn_readfirstlane(x)", arch, lambda x, lane: 0 * lane + x[0])
    expect("__builtin_amdgcn_writelane(77, 9, x)", arch, lambda x, lane: np.where(lane == 9, 77, x))


@pytest.mark.parametrize("arch", BOTH)
def test_lds_permutes(arch: str) -> None:
    wave = WAVE[arch]
    expect("__builtin_amdgcn_ds_bpermute(4 * (lane * 7 + 3), x)", arch, lambda x, lane: x[(lane * 7 + 3) % wave])

    def push(x: Lanes, lane: Lanes) -> Lanes:
        out = np.zeros_like(x)
        for at in lane:  # the highest lane wins
            out[at // 2 + 4] = x[at]
        return out

    expect("__builtin_amdgcn_ds_permute(4 * (lane / 2 + 4), x)", arch, push)
    expect("__builtin_amdgcn_ds_swizzle(x, 0x8000 | 0x1b)", arch, lambda x, lane: x[lane ^ 3])  # quads reversed

    def bits(x: Lanes, lane: Lanes) -> Lanes:
        at = lane % 32
        return x[lane // 32 * 32 + (((at & 0x1c) | 0x01) ^ 0x08)]

    expect(f"__builtin_amdgcn_ds_swizzle(x, {0x08 << 10 | 0x01 << 5 | 0x1C})", arch, bits)


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
DPP_CASES = [
    pytest.param(arch, *case, id=f"{name}-{arch}")
    for arch in BOTH
    for name, case in (DPP | (DPP_RDNA if arch in RDNA else DPP_GFX9)).items()
]


@pytest.mark.parametrize(("arch", "control", "source"), DPP_CASES)
def test_dpp(arch: str, control: int, source: Callable[[Lanes], Lanes]) -> None:
    def read(old: Any) -> Callable[[Lanes, Lanes], Lanes]:
        return lambda x, lane: np.where(source(lane) >= 0, x[source(lane)], old)

    call = "__builtin_amdgcn_update_dpp(-5, x, {}, {}, {}, {})"
    expect(call.format(control, "0xf", "0xf", "false"), arch, read(-5))
    if control not in (0x142, 0x143):  # lanes that no row_bcast reaches keep what they had
        expect(call.format(control, "0xf", "0xf", "true"), arch, read(0))
    masked = lambda x, lane: np.where((lane // 16 % 2 == 1) & (lane // 4 % 4 != 2), read(-5)(x, lane), -5)
    expect(call.format(control, "0xa", "0xb", "false"), arch, masked)


def test_dpp_that_the_chip_lacks() -> None:
    from tests.platforms.cpu.gpu import GpuError

    with pytest.raises(GpuError, match="DPP control that gfx1100 does not have"):
        evaluate("__builtin_amdgcn_update_dpp(0, x, 0x142, 0xf, 0xf, false)", "gfx1100")


@pytest.mark.parametrize("arch", RDNA)
def test_permlane16(arch: str) -> None:
    lo, hi = 0x76543210, 0xFEDCBA98
    pick = (5 * np.arange(16) + 1) % 16
    select = [sum(int(p) << 4 * n for n, p in enumerate(half)) for half in (pick[:8], pick[8:])]
    call = "__builtin_amdgcn_{}(0u, (unsigned)x, {}u, {}u, false, false)"
    expect(call.format("permlane16", *select), arch, lambda x, lane: x[lane // 16 * 16 + pick[lane % 16]])
    expect(call.format("permlanex16", lo, hi), arch, lambda x, lane: x[lane ^ 16])
    expect(call.format("permlanex16", *select), arch, lambda x, lane: x[(lane ^ 16) // 16 * 16 + pick[lane % 16]])


@pytest.mark.parametrize("distance", [16, 32])
def test_permlane_swap(distance: int) -> None:
    # a's odd rows (upper half) and b's even rows (lower half) change places; b is x + 1000.
    call = f"__builtin_amdgcn_permlane{distance}_swap(x, x + 1000, false, false)"
    odd = lambda lane: (lane & distance) != 0
    expect(f"{call}[0]", "gfx950", lambda x, lane: np.where(odd(lane), x[lane ^ distance] + 1000, x), "unsigned")
    expect(f"{call}[1]", "gfx950", lambda x, lane: np.where(odd(lane), x + 1000, x[lane ^ distance]), "unsigned")


@pytest.mark.parametrize("arch", ARCHS)
def test_only_where_the_chip_has_it(arch: str) -> None:
    missing = {
        "__builtin_amdgcn_permlane16(0, x, 0, 0, 0, 0)": arch not in RDNA,
        "__builtin_amdgcn_permlanex16(0, x, 0, 0, 0, 0)": arch not in RDNA,
        "__builtin_amdgcn_permlane16_swap(x, x, 0, 0)[0]": arch != "gfx950",
        "__builtin_amdgcn_permlane32_swap(x, x, 0, 0)[0]": arch != "gfx950",
        "__builtin_amdgcn_ballot_w32(x)": arch not in RDNA,
    }
    for expression, lacks in missing.items():
        code = f"__global__ void kernel(unsigned* p) {{ unsigned x = *p; *p = {expression}; }}"
        result = compile(code, f"--offload-arch={arch}")
        assert (result.status == "HIPRTC_ERROR_COMPILATION") == lacks, result.log
        assert ("needs target feature" in result.log) == lacks


@pytest.mark.parametrize("arch", BOTH)
def test_byte_permute(arch: str) -> None:
    expect("__builtin_amdgcn_perm(0x77665544, 0x33221100, 0x0c070500u)", arch, lambda x, lane: 0 * lane + 0x00775500, "unsigned")
    expect("__builtin_amdgcn_ubfe(x, 3, 5)", arch, lambda x, lane: x >> 3 & 31, "unsigned")
    expect("__builtin_amdgcn_sbfe(x, 3, 5)", arch, lambda x, lane: (x >> 3 & 31) - ((x >> 7 & 1) << 5))


@pytest.mark.parametrize("arch", BOTH)
def test_waves_are_apart(arch: str) -> None:
    code = 'extern "C" __global__ void kernel(int* p) { p[threadIdx.x] = __shfl(p[threadIdx.x], 0) + __popcll(__ballot(1)); }'
    count = 2 * WAVE[arch] + 7  # the last wave is not whole
    values = np.arange(count, dtype=np.int32)
    (result,) = run(code, arch, values, block=count)
    first = values // WAVE[arch] * WAVE[arch]
    np.testing.assert_array_equal(result, first + np.minimum(WAVE[arch], count - first))
