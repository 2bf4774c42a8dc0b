"""Each matrix instruction on each GPU that has it, against NumPy.

The tables below say where element (i, k) of A, (k, j) of B and (i, j) of D live, as AMD's ISA documents and
matrix instruction calculator do: from the element to the lane. The simulator goes the other way, from the
lane to the element, and shares nothing with them. Inputs are small integers, so that every product is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn.errors import CompileError, HipError
from tests.platforms.cpu.simulator import ARCHS, WAVE, compiled, run

CDNA = ("gfx90a", "gfx942", "gfx950")
RDNA3, RDNA4 = ("gfx1100",), ("gfx1201",)

FNUZ = {"fp8": ml_dtypes.float8_e4m3fnuz, "bf8": ml_dtypes.float8_e5m2fnuz}
OCP = {"fp8": ml_dtypes.float8_e4m3fn, "bf8": ml_dtypes.float8_e5m2}
OTHER = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}

Place = tuple[NDArray[Any], NDArray[Any]]  # lane, element of the lane's vector


@dataclass(frozen=True)
class Instruction:
    builtin: str
    archs: tuple[str, ...]
    size: int  # rows of A, columns of B
    depth: int
    a: str
    b: str
    operand: str  # C type of a lane's A and B
    blocks: int = 1
    c: str = "f32"
    extra: str = ""  # last arguments
    high: int = 0  # which half of a register holds a 16-bit D

    def __str__(self) -> str:
        return self.builtin.removeprefix("__builtin_amdgcn_") + ("_high" if self.high else "")


def mfma(
    name: str, size: int, depth: int, a: str, operand: str, blocks: int = 1, b: str = "", archs: Any = CDNA
) -> Instruction:
    return Instruction(
        f"__builtin_amdgcn_mfma_f32_{name}",
        tuple(archs),
        size,
        depth,
        a,
        b or a,
        operand,
        blocks,
        extra=", 0, 0, 0",
    )


def wmma(name: str, archs: Any, a: str, operand: str, c: str = "f32", b: str = "", high: int = -1) -> Instruction:
    extra = "" if high < 0 else f", {high}"
    return Instruction(f"__builtin_amdgcn_wmma_{name}", archs, 16, 16, a, b or a, operand, 1, c, extra, max(high, 0))


INSTRUCTIONS = [
    mfma("32x32x1f32", 32, 1, "f32", "float", 2),
    mfma("16x16x1f32", 16, 1, "f32", "float", 4),
    mfma("4x4x1f32", 4, 1, "f32", "float", 16),
    mfma("32x32x2f32", 32, 2, "f32", "float"),
    mfma("16x16x4f32", 16, 4, "f32", "float"),
    mfma("32x32x4f16", 32, 4, "f16", "_Float16 4", 2),
    mfma("16x16x4f16", 16, 4, "f16", "_Float16 4", 4),
    mfma("4x4x4f16", 4, 4, "f16", "_Float16 4", 16),
    mfma("32x32x8f16", 32, 8, "f16", "_Float16 4"),
    mfma("16x16x16f16", 16, 16, "f16", "_Float16 4"),
    mfma("32x32x4bf16_1k", 32, 4, "bf16", "short 4", 2),
    mfma("16x16x4bf16_1k", 16, 4, "bf16", "short 4", 4),
    mfma("4x4x4bf16_1k", 4, 4, "bf16", "short 4", 16),
    mfma("32x32x8bf16_1k", 32, 8, "bf16", "short 4"),
    mfma("16x16x16bf16_1k", 16, 16, "bf16", "short 4"),
    mfma("32x32x2bf16", 32, 2, "bf16", "short 2", 2, archs=["gfx90a"]),
    mfma("16x16x2bf16", 16, 2, "bf16", "short 2", 4, archs=["gfx90a"]),
    mfma("4x4x2bf16", 4, 2, "bf16", "short 2", 16, archs=["gfx90a"]),
    mfma("32x32x4bf16", 32, 4, "bf16", "short 2", archs=["gfx90a"]),
    mfma("16x16x8bf16", 16, 8, "bf16", "short 2", archs=["gfx90a"]),
    *(
        mfma(f"{shape}_{a}_{b}", size, depth, a, "long", b=b, archs=["gfx942", "gfx950"])
        for shape, size, depth in (("16x16x32", 16, 32), ("32x32x16", 32, 16))
        for a in ("fp8", "bf8")
        for b in ("fp8", "bf8")
    ),
    mfma("32x32x16_f16", 32, 16, "f16", "_Float16 8", archs=["gfx950"]),
    mfma("16x16x32_f16", 16, 32, "f16", "_Float16 8", archs=["gfx950"]),
    mfma("32x32x16_bf16", 32, 16, "bf16", "__bf16 8", archs=["gfx950"]),
    mfma("16x16x32_bf16", 16, 32, "bf16", "__bf16 8", archs=["gfx950"]),
    wmma("f32_16x16x16_f16_w32", RDNA3, "f16", "_Float16 16"),
    wmma("f32_16x16x16_bf16_w32", RDNA3, "bf16", "short 16"),
    *(wmma("f16_16x16x16_f16_w32", RDNA3, "f16", "_Float16 16", "f16", high=high) for high in (0, 1)),
    *(wmma("bf16_16x16x16_bf16_w32", RDNA3, "bf16", "short 16", "bf16", high=high) for high in (0, 1)),
    wmma("f32_16x16x16_f16_w32_gfx12", RDNA4, "f16", "_Float16 8"),
    wmma("f32_16x16x16_bf16_w32_gfx12", RDNA4, "bf16", "short 8"),
    wmma("f16_16x16x16_f16_w32_gfx12", RDNA4, "f16", "_Float16 8", "f16"),
    wmma("bf16_16x16x16_bf16_w32_gfx12", RDNA4, "bf16", "short 8", "bf16"),
    *(wmma(f"f32_16x16x16_{a}_{b}_w32_gfx12", RDNA4, a, "int 2", b=b) for a in ("fp8", "bf8") for b in ("fp8", "bf8")),
]
CASES = [pytest.param(i, arch, id=f"{i}-{arch}") for i in INSTRUCTIONS for arch in i.archs]


def dtype(name: str, arch: str) -> Any:
    return (OTHER | (FNUZ if arch == "gfx942" else OCP))[name]


def a_place(x: Instruction, arch: str) -> list[Place]:
    """Return where A[block, i, k] is (and B[block, k, j], with j for i): every place that holds a copy."""
    block, i, k = np.indices((x.blocks, x.size, x.depth))
    if arch == "gfx1100":
        return [(i, k), (i + 16, k)]
    if arch == "gfx1201":
        return [(i + 16 * (k // 8), k % 8)]
    if x.blocks > 1:
        return [(i + x.size * block, k)]
    each = x.size * x.depth // 64  # neighbours along k in a lane
    return [(i + x.size * (k // each), k % each)]


def d_place(x: Instruction, arch: str) -> Place:
    """Return where C[block, i, j] and D[block, i, j] are."""
    block, i, j = np.indices((x.blocks, x.size, x.size))
    if arch == "gfx1100":
        return (j + 16 * (i % 2), i // 2 if x.c == "f32" else i // 2 * 2 + x.high)
    if arch == "gfx1201":
        return (j + 16 * (i // 8), i % 8)
    if x.size == 32:
        return (j + 32 * (i // 4 % 2), 16 * block + 4 * (i // 8) + i % 4)
    if x.size == 16:
        return (j + 16 * (i // 4), 4 * block + i % 4)
    return (j + 4 * block, i)


def vector(text: str, name: str) -> str:
    element, _, count = text.partition(" ")
    return f"typedef {element} {name}" + (f" __attribute__((ext_vector_type({count})))" if count else "") + ";\n"


def source(x: Instruction) -> str:
    """Return a kernel that does it once, under a name of its own."""
    name = kernel_name(x)
    c = {"f32": "float", "f16": "_Float16", "bf16": "short"}[x.c]
    return (
        vector(x.operand, f"{name}_ab")
        + vector(f"{c} {registers(x, x.archs[0])}", f"{name}_c")
        + f'extern "C" __global__ void {name}(const {name}_ab* a, const {name}_ab* b, {name}_c* c) {{\n'
        + "    int lane = threadIdx.x;\n"
        + f"    c[lane] = {x.builtin}(a[lane], b[lane], c[lane]{x.extra});\n}}\n"
    )


def kernel_name(x: Instruction) -> str:
    return f"run_{x}"


def inputs(x: Instruction, arch: str) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(7)
    shapes = ((x.size, x.depth), (x.depth, x.size), (x.size, x.size))
    a, b, c = (rng.integers(-4, 5, (x.blocks, *shape)).astype(np.float64) for shape in shapes)
    return a, b, c


def registers(x: Instruction, arch: str) -> int:
    return x.size * x.size * x.blocks // WAVE[arch] * (2 if arch == "gfx1100" and x.c != "f32" else 1)


def place(x: Instruction, arch: str) -> tuple[Any, Any, Any]:
    """Return what the lanes hold of `inputs`: [lane, element], as bits."""
    a, b, c = inputs(x, arch)
    per_lane = 16 if arch == "gfx1100" else x.size * x.depth * x.blocks // WAVE[arch]
    a_lanes = np.zeros((WAVE[arch], per_lane), dtype(x.a, arch))
    b_lanes = np.zeros((WAVE[arch], per_lane), dtype(x.b, arch))
    for lane, element in a_place(x, arch):
        a_lanes[lane, element] = a
        b_lanes[lane, element] = b.swapaxes(1, 2)
    c_lanes = np.full((WAVE[arch], registers(x, arch)), 99, dtype(x.c, arch))
    c_lanes[d_place(x, arch)] = c
    return tuple(m.view(np.uint8) for m in (a_lanes, b_lanes, c_lanes))


@pytest.mark.parametrize(("x", "arch"), CASES)
def test_against_numpy(x: Instruction, arch: str) -> None:
    a, b, c = inputs(x, arch)
    program = "".join(source(other) for other in INSTRUCTIONS if arch in other.archs)  # compiled once
    *_, raw = run(program, arch, *place(x, arch), kernel=kernel_name(x), block=WAVE[arch])
    lanes = raw.view(dtype(x.c, arch)).astype(np.float64)
    expected = np.full_like(lanes, 99)
    expected[d_place(x, arch)] = (c + a @ b).astype(dtype(x.c, arch))
    np.testing.assert_array_equal(lanes, expected)


@pytest.mark.parametrize("arch", ARCHS)
def test_only_where_the_chip_has_it(arch: str) -> None:
    missing = [x for x in INSTRUCTIONS if arch not in x.archs and not x.high]
    with pytest.raises(CompileError) as caught:
        compiled("".join(source(x) for x in missing), arch, "-ferror-limit=0")
    for x in missing:
        assert f"error: '{x.builtin}' needs target feature " in caught.value.log


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("name", ["fp8", "bf8"])
def test_every_8_bit_float(name: str, arch: str) -> None:
    """A row of A holds each value once, against the identity."""
    x = mfma(f"16x16x32_{name}_{name}", 16, 32, name, "long")
    values = np.arange(256, dtype=np.uint8).view(dtype(name, arch))
    for part in values.reshape(2, 16, 8):
        a = np.zeros((64, 8), values.dtype)
        a[:16] = part  # k = 0 .. 7
        b = np.zeros((64, 8), values.dtype)
        b[np.arange(8), np.arange(8)] = 1
        lanes = a.view(np.uint8), b.view(np.uint8), np.zeros((64, 4), np.float32)
        *_, d = run(source(x), arch, *lanes, kernel=kernel_name(x))
        finite = np.isfinite(part.astype(np.float32)).all(1)
        got = np.array([[d[j + 16 * (i // 4), i % 4] for j in range(8)] for i in range(16)])
        np.testing.assert_array_equal(got[finite], part.astype(np.float32)[finite])
        assert np.isnan(got[~finite]).any(1).all()


def test_rdna3_lanes_must_repeat() -> None:
    x = next(i for i in INSTRUCTIONS if i.archs == RDNA3)
    a, b, c = place(x, "gfx1100")
    a[17] ^= 1
    with pytest.raises(HipError, match="lanes 16 to 31 do not repeat"):
        run(source(x), "gfx1100", a, b, c, kernel=kernel_name(x), block=32)


@pytest.mark.parametrize("arch", [*RDNA3, *RDNA4])
def test_wmma_needs_every_lane(arch: str) -> None:
    x = next(i for i in INSTRUCTIONS if i.archs == (arch,))
    with pytest.raises(HipError, match="inactive lanes"):
        run(source(x), arch, *place(x, arch), kernel=kernel_name(x), block=24)


def test_broadcast_modes_are_refused() -> None:
    x = next(i for i in INSTRUCTIONS if i.archs == CDNA)
    with pytest.raises(HipError, match="cbsz, abid and blgp"):
        run(source(x).replace(", 0, 0, 0", ", 1, 0, 0"), "gfx942", *place(x, "gfx942"), kernel=kernel_name(x))
