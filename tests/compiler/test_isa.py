from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from hipattn import ArgumentError, CodeObjectError, PlatformError
from hipattn.compiler import llvm
from hipattn.compiler.code_object import kernels
from hipattn.compiler.descriptor import allocated_vgprs
from hipattn.compiler.isa import Instruction, analyse, hottest_loop, parse, reachable
from hipattn.compiler.occupancy import waves_per_simd
from hipattn.compiler.program import Program
from hipattn.compiler.target import CHECKED_ARCHS
from hipattn.kernels import softmax
from hipattn.runtime import bindings

# As llvm-objdump writes it: an outer loop over L0 that is entered in its middle, two inner ones, padding.
NESTED = """
k.co:	file format elf64-amdgpu

Disassembly of section .text:

0000000000001800 <nested>:
	s_load_dwordx2 s[0:1], s[4:5], 0x0                         // 000000001800: C0060002 00000000
	s_branch L1                                                // 000000001808: BF820001

000000000000180c <L0>:
	v_add_u32_e32 v0, 1, v0                                    // 00000000180C: 68000081

0000000000001810 <L1>:
	v_mov_b32_e32 v1, 0                                        // 000000001810: 7E020280

0000000000001814 <L2>:
	v_mfma_f32_32x32x8_f16 v[0:15], v[16:17], v[18:19], v[0:15]// 000000001814: D3CC8000 04022510
	s_cbranch_scc1 L2                                          // 00000000181C: BF85FFFD

0000000000001820 <L3>:
	ds_read_b128 v[0:3], v4                                    // 000000001820: D9FE0000 00000004
	s_waitcnt lgkmcnt(0)                                       // 000000001828: BF8CC07F
	v_exp_f32_e32 v0, v0                                       // 00000000182C: 7E004100
	s_cbranch_vccnz L3                                         // 000000001830: BF87FFFB
	s_cbranch_execnz L0                                        // 000000001834: BF89FFF5
	s_endpgm                                                   // 000000001838: BF810000
	s_nop 0                                                    // 00000000183C: BF800000
	s_nop 0                                                    // 000000001840: BF800000

0000000000001900 <straight>:
	s_cbranch_execz L4                                         // 000000001900: BF880001
	global_store_dword v[0:1], v2, off                         // 000000001904: DC708000 007F0200

000000000000190c <L4>:
	s_endpgm                                                   // 00000000190C: BF810000
"""


def opcodes(instructions: list[Instruction]) -> list[str]:
    return [instruction.opcode for instruction in instructions]


def test_a_disassembly_becomes_functions_of_instructions() -> None:
    found = parse(NESTED)
    assert set(found) == {"nested", "straight"}
    assert found["straight"] == [
        Instruction("s_cbranch_execz", "L4"),
        Instruction("global_store_dword", "v[0:1], v2, off"),
        Instruction("s_endpgm", "", "L4"),
    ]
    assert str(found["nested"][4]) == "v_mfma_f32_32x32x8_f16 v[0:15], v[16:17], v[18:19], v[0:15]"


def test_the_hottest_loop_is_the_innermost_with_matrix_instructions() -> None:
    assert opcodes(hottest_loop(parse(NESTED)["nested"])) == ["v_mfma_f32_32x32x8_f16", "s_cbranch_scc1"]


def test_without_matrix_instructions_it_is_the_longest_innermost_one() -> None:
    text = NESTED.replace("v_mfma_f32_32x32x8_f16", "v_dot2_f32_f16")
    expected = ["ds_read_b128", "s_waitcnt", "v_exp_f32_e32", "s_cbranch_vccnz"]
    assert opcodes(hottest_loop(parse(text)["nested"])) == expected


def test_an_outer_loop_is_taken_when_only_it_has_matrix_instructions() -> None:
    text = NESTED.replace("v_mfma_f32_32x32x8_f16", "v_dot2_f32_f16").replace(
        "v_mov_b32_e32", "v_wmma_f32_16x16x16_f16"
    )
    body = opcodes(hottest_loop(parse(text)["nested"]))
    assert body[0] == "v_add_u32_e32"
    assert body[-1] == "s_cbranch_execnz"
    assert len(body) == 9


def test_a_latch_by_address_before_its_head_belongs_to_the_loop() -> None:
    code = [
        Instruction("s_branch", "L1"),
        Instruction("s_add_u32", "s0, s0, 1", "L0"),
        Instruction("v_mul_f32_e32", "v0, v0, v0", "L1"),
        Instruction("s_cbranch_scc1", "L0"),
        Instruction("s_endpgm"),
    ]
    assert hottest_loop(code) == code[1:4]


def test_without_a_loop_there_is_the_whole_kernel_without_padding() -> None:
    code = parse(NESTED)
    assert hottest_loop(code["straight"]) == []
    assert reachable(code["straight"]) == code["straight"]
    assert reachable(code["nested"]) == code["nested"][:-2]


def test_a_cycle_with_two_entries_is_no_loop() -> None:
    code = [
        Instruction("s_cbranch_scc0", "L1"),
        Instruction("v_nop", "", "L0"),
        Instruction("v_nop", "", "L1"),
        Instruction("s_cbranch_scc1", "L0"),
        Instruction("s_endpgm"),
    ]
    assert hottest_loop(code) == []


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("v_mfma_f32_16x16x16_bf16", "matrix"),
        ("v_smfmac_f32_16x16x32_f16", "matrix"),
        ("v_wmma_f32_16x16x16_f16", "matrix"),
        ("v_swmmac_f32_16x16x32_f16", "matrix"),
        ("v_exp_f32_e32", "transcendental"),
        ("v_rcp_iflag_f32_e32", "transcendental"),
        ("v_s_rsq_f32", "transcendental"),
        ("v_sqrt_f16_e64", "transcendental"),
        ("v_cos_f32_e32", "transcendental"),
        ("v_dual_mul_f32", "valu"),
        ("v_accvgpr_read_b32", "valu"),
        ("v_cvt_f32_f16_sdwa", "valu"),
        ("ds_bpermute_b32", "lds"),
        ("global_load_lds_dwordx4", "memory"),
        ("buffer_load_dword", "memory"),
        ("flat_store_b128", "memory"),
        ("scratch_load_b32", "memory"),
        ("s_waitcnt", "wait"),
        ("s_wait_loadcnt", "wait"),
        ("s_barrier_signal", "wait"),
        ("s_delay_alu", "wait"),
        ("s_cbranch_scc1", "branch"),
        ("s_endpgm", "branch"),
        ("s_load_dwordx4", "scalar"),
        ("s_and_saveexec_b64", "scalar"),
        ("image_sample", "memory"),
        ("exp", "other"),
    ],
)
def test_kinds(opcode: str, kind: str) -> None:
    assert Instruction(opcode).kind == kind


# ---- occupancy ----


@pytest.mark.parametrize(
    ("arch", "vgprs", "waves"),
    [
        *(("gfx906", 24, 10), ("gfx906", 36, 7), ("gfx908", 84, 3), ("gfx908", 128, 2), ("gfx900", 250, 1)),
        *(("gfx90a", 64, 8), ("gfx90a", 72, 7), ("gfx942", 128, 4), ("gfx950", 129, 3), ("gfx942", 512, 1)),
        *(("gfx1010", 48, 20), ("gfx1010", 100, 9), ("gfx1030", 64, 16), ("gfx1030", 84, 10), ("gfx1102", 100, 9)),
        *(("gfx1100", 96, 16), ("gfx1151", 100, 12), ("gfx1201", 128, 10), ("gfx1200", 160, 9), ("gfx1201", 250, 5)),
    ],
)
def test_registers_limit_the_waves(arch: str, vgprs: int, waves: int) -> None:
    assert waves_per_simd(arch, threads=32, vgprs=vgprs, sgprs=32, lds=0) == waves


@pytest.mark.parametrize(
    ("arch", "threads", "lds", "waves"),
    [
        ("gfx942", 256, 20_000, 3),
        ("gfx950", 256, 20_000, 8),
        ("gfx950", 256, 160 << 10, 1),
        ("gfx1100", 256, 40_000, 6),
        ("gfx90a", 512, 64 << 10, 2),
        ("gfx942", 64, 40_000, 0.25),
    ],
)
def test_local_memory_limits_the_workgroups(arch: str, threads: int, lds: int, waves: float) -> None:
    assert waves_per_simd(arch, threads=threads, vgprs=32, sgprs=32, lds=lds) == waves


def test_only_whole_workgroups_count() -> None:
    assert waves_per_simd("gfx942", threads=512, vgprs=96, sgprs=32, lds=0) == 4  # of 5 waves that the registers allow
    assert waves_per_simd("gfx906", threads=1024, vgprs=200, sgprs=32, lds=0) == 0  # it cannot run at all


def test_scalar_registers_limit_the_waves_of_gfx9_only() -> None:
    assert waves_per_simd("gfx942", threads=64, vgprs=32, sgprs=102, lds=0) == 7
    assert waves_per_simd("gfx1100", threads=64, vgprs=32, sgprs=106, lds=0) == 16


def test_an_unknown_arch_is_refused() -> None:
    with pytest.raises(ArgumentError, match="arch is 'gfx1'; accepted: "):
        waves_per_simd("gfx1", threads=64, vgprs=32, sgprs=32, lds=0)


# ---- LLVM's tools ----


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that is all of PATH, with no ROCm beside it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ROCM_PATH", str(tmp_path / "rocm"))
    llvm.find.cache_clear()
    yield tmp_path
    llvm.find.cache_clear()


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_newest_tool_is_found_and_rocm_s_own_before_it(folder: Path) -> None:
    assert llvm.find("llvm-mca") is None
    for name in ("llvm-mca", "llvm-mca-9", "llvm-mca-22", "llvm-mca-22.old"):
        script(folder / name, "")
    llvm.find.cache_clear()
    assert llvm.find("llvm-mca") == folder / "llvm-mca-22"
    script(folder / "rocm" / "llvm" / "bin" / "llvm-mca", "")
    llvm.find.cache_clear()
    assert llvm.find("llvm-mca") == folder / "rocm" / "llvm" / "bin" / "llvm-mca"


def test_a_missing_tool_is_named(folder: Path) -> None:
    with pytest.raises(PlatformError, match=r"llvm-objdump was found neither in \$ROCM_PATH/llvm/bin nor on PATH"):
        llvm.disassemble(b"", "gfx942")
    assert llvm.cycles(["v_nop"], "gfx942") is None


def test_a_tool_that_is_too_old_or_fails_is_named(folder: Path) -> None:
    script(folder / "llvm-objdump", "echo \"'gfx950' is not a recognized processor for this target\" >&2")
    with pytest.raises(PlatformError, match="llvm-objdump does not know gfx950; a newer LLVM does"):
        llvm.disassemble(b"", "gfx950")
    script(folder / "llvm-objdump", "echo not an object file >&2; exit 1")
    with pytest.raises(PlatformError, match="llvm-objdump fails with status 1: not an object file"):
        llvm.disassemble(b"", "gfx950")


def test_what_is_no_code_object_is_refused() -> None:
    with pytest.raises(CodeObjectError, match="the code object of 4 bytes cannot be read"):
        analyse(b"\x7fELF", "gfx942")


@pytest.mark.skipif(not bindings.platform().simulated, reason="needs a simulated GPU")
def test_a_simulated_gpu_s_code_object_is_refused(arch: str) -> None:
    image = Program('extern "C" __global__ void k() {}').compile(arch).image
    with pytest.raises(CodeObjectError, match="is a simulated GPU's: it holds no AMD instructions"):
        analyse(image, arch)


# ---- real machine code ----

real = pytest.mark.skipif(
    bindings.platform().name != "amd" or llvm.find("llvm-objdump") is None,
    reason="needs ROCm's compiler and llvm-objdump",
)


@real
@pytest.mark.rocm
@pytest.mark.parametrize("arch", CHECKED_ARCHS)
def test_softmax_of_every_arch(arch: str) -> None:
    specialisation = softmax.specialise("float32", "float32", softmax.choose_long(4096, 4, arch), lse=False)
    image = Program(specialisation.render(arch), headers=specialisation.headers()).compile(arch).image
    (analysis,) = analyse(image, arch)
    assert analysis.kernel == kernels(image)["attention_softmax"]
    assert analysis.in_loop  # over rows; the elements of a row are unrolled
    assert analysis.counts["transcendental"] >= specialisation.constants["HELD"]
    assert analysis.counts["matrix"] == 0
    assert analysis.counts["memory"] >= 2 * specialisation.constants["HELD"] // specialisation.constants["VECTOR"]
    assert analysis.counts["lds"] > 0
    assert sum(analysis.counts.values()) == len(hottest_loop(parse(llvm.disassemble(image, arch))["attention_softmax"]))
    assert analysis.occupancy >= 5
    assert (analysis.cycles is None) == (llvm.find("llvm-mca") is None)


MATRIX = """
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef float float4_ __attribute__((ext_vector_type(4)));
extern "C" __global__ __launch_bounds__(64) void products(const half4* a, float4_* c, int n, int m) {
    for (int j = 0; j < m; ++j) {
        float4_ sum = c[threadIdx.x];
#pragma unroll 1
        for (int i = 0; i < n; ++i) {
            half4 x = a[i * 64 + threadIdx.x];
#pragma unroll
            for (int u = 0; u < 8; ++u) sum = __builtin_amdgcn_mfma_f32_16x16x16f16(x, x, sum, 0, 0, 0);
        }
        c[threadIdx.x] = sum;
    }
}
"""


@real
@pytest.mark.rocm
@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx950"])
def test_the_inner_loop_of_matrix_products(arch: str) -> None:
    (analysis,) = analyse(Program(MATRIX).compile(arch).image, arch)
    assert analysis.in_loop
    assert analysis.counts["matrix"] == 8
    assert analysis.counts["memory"] == 1
    assert analysis.cycles is None or analysis.cycles > 8 * 4


@real
@pytest.mark.rocm
@pytest.mark.parametrize("arch", ["gfx906", "gfx942", "gfx1100"])
def test_registers_are_what_the_descriptor_reserves(arch: str) -> None:
    source = """extern "C" __global__ __launch_bounds__(64) void k() { __asm__ volatile("" ::: "v99"); }"""
    image = Program(source).compile(arch).image
    assert kernels(image)["k"].vgprs == 100
    assert allocated_vgprs(image, "k", arch) == {"gfx906": 100, "gfx942": 104, "gfx1100": 104}[arch]
    with pytest.raises(CodeObjectError, match="the code object has no descriptor of other"):
        allocated_vgprs(image, "other", arch)


@real
@pytest.mark.rocm
@pytest.mark.skipif(llvm.find("llc") is None, reason="needs llc")
@pytest.mark.parametrize("arch", CHECKED_ARCHS)
def test_occupancy_is_what_llvm_reckons(arch: str) -> None:
    cases = list(product((20, 36, 84, 100, 128, 160, 250), (1, 3000, 20000, 40000), (64, 256, 512)))
    code = ""
    for number, (vgprs, lds, threads) in enumerate(cases):
        code += f"""
        @s{number} = internal addrspace(3) global [{lds} x i8] poison
        define amdgpu_kernel void @k{number}() "amdgpu-flat-work-group-size"="{threads},{threads}" {{
            store volatile i8 0, ptr addrspace(3) @s{number}
            call void asm sideeffect "", "~{{v{vgprs - 1}}}"()
            ret void
        }}"""
    command = [llvm.find("llc"), "-mtriple=amdgcn-amd-amdhsa", f"-mcpu={arch}", "-o", "-", "-"]
    made = subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout
    expected = [int(n) for n in re.findall(r"^; Occupancy: (\d+)", made, re.MULTILINE)]
    found = []
    for vgprs, lds, threads in cases:
        # LLVM takes the lower of two limits; a SIMD holds whole workgroups.
        by_registers = waves_per_simd(arch, threads=32, vgprs=vgprs, sgprs=16, lds=0)
        by_workgroups = waves_per_simd(arch, threads=threads, vgprs=1, sgprs=1, lds=lds)
        found.append(min(by_registers, math.ceil(by_workgroups)))
    assert found == expected
