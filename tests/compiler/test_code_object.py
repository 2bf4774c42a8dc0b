from __future__ import annotations

import ctypes
import logging
from dataclasses import replace

import pytest

from hipattn import CodeObjectError, CompileError
from hipattn.compiler import loader
from hipattn.compiler.code_object import Argument, check, kernels
from hipattn.compiler.program import CodeObject, Program
from hipattn.compiler.specialise import Specialisation
from hipattn.compiler.target import lds_limit, wave_size
from hipattn.runtime import Arguments, bindings

pytestmark = pytest.mark.rocm
real = pytest.mark.skipif(bindings.platform().name != "amd", reason="only AMD's code objects have its metadata")


class TwoParams(Arguments):
    _fields_ = (("a", ctypes.c_void_p), ("b", ctypes.c_int64))


class ThreeParams(Arguments):
    _fields_ = (*TwoParams._fields_, ("c", ctypes.c_int64))


SOURCE = """
struct TwoParams { void* a; long long b; };
extern "C" __global__ __launch_bounds__(128) void one_struct(TwoParams p) {
    __shared__ long long shared[16];
    shared[threadIdx.x % 16] = p.b;
    __syncthreads();
    static_cast<long long*>(p.a)[threadIdx.x] = shared[15 - threadIdx.x % 16];
}
extern "C" __global__ void two_values(long long* a, long long b) { *a = b; }
extern "C" __global__ void nothing() {}
"""
ONE = Specialisation("source", "one_struct", TwoParams, {"BLOCK": 128})


@pytest.fixture(scope="module")
def image(arch: str) -> bytes:
    return Program(SOURCE).compile(arch).image


@real
def test_metadata(image: bytes, arch: str) -> None:
    found = kernels(image)
    assert set(found) == {"one_struct", "two_values", "nothing"}
    kernel = found["one_struct"]
    assert kernel.arguments == (Argument("by_value", 0, 16),)
    assert (kernel.lds, kernel.max_threads, kernel.wave_size) == (128, 128, wave_size(arch))
    assert kernel.vgprs > 0
    assert kernel.sgprs > 0
    assert not kernel.spills
    assert [size for _, _, size in found["two_values"].arguments] == [8, 8]
    assert found["nothing"].arguments == ()


@real
def test_a_kernel_that_fits(image: bytes, arch: str) -> None:
    assert check(image, ONE, arch) == kernels(image)["one_struct"]


@real
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arguments": ThreeParams}, "takes by_value of 16 bytes at 0; ThreeParams is one struct of 24 bytes"),
        ({"kernel": "two_values"}, "takes global_buffer of 8 bytes at 0, by_value of 8 bytes at 8; TwoParams is"),
        ({"kernel": "nothing"}, "takes nothing; TwoParams is one struct of 16 bytes"),
        ({"kernel": "other"}, "there is no kernel other, only one_struct, two_values, nothing"),
        ({"constants": {"BLOCK": 256}}, "is compiled for 128 threads a block and launched with 256"),
    ],
    ids=["struct", "values", "no-arguments", "name", "block"],
)
def test_a_kernel_that_does_not_fit(image: bytes, arch: str, wrong: dict[str, object], message: str) -> None:
    specialisation = replace(ONE, **wrong)  # type: ignore[arg-type]
    with pytest.raises(CodeObjectError) as caught:
        check(image, specialisation, arch)
    assert str(caught.value).startswith(specialisation.name)
    assert message in str(caught.value)


@real
def test_another_arch_s_wave_is_refused(image: bytes, arch: str) -> None:
    other = "gfx1100" if wave_size(arch) == 64 else "gfx942"
    with pytest.raises(CodeObjectError, match=f"has waves of {wave_size(arch)}; on {other} they are of"):
        check(image, ONE, other)


@pytest.mark.skipif(bindings.platform().name == "nvidia", reason="the wording is AMD's")
def test_more_local_memory_than_there_is_does_not_compile(arch: str) -> None:
    source = """extern "C" __global__ void k(float* p) {{
        __shared__ float s[{}]; s[threadIdx.x] = *p; __syncthreads(); *p = s[3];
    }}"""
    limit = lds_limit(arch)
    Program(source.format(limit // 4)).compile(arch)
    with pytest.raises(CompileError, match=rf"local memory \({limit + 4}\) exceeds limit \({limit}\) in 'k'"):
        Program(source.format(limit // 4 + 1)).compile(arch)


@real
def test_a_kernel_that_spills_is_used_with_a_warning(
    arch: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = """struct TwoParams { void* a; long long b; };
    extern "C" __global__ __launch_bounds__(1024) void one_struct(TwoParams p) {
        float x[300];
        const volatile float* in = static_cast<const volatile float*>(p.a);
        for (int i = 0; i < 300; ++i) x[i] = in[i * p.b + threadIdx.x];
        for (int i = 0; i < 300; ++i) static_cast<volatile float*>(p.a)[i] = x[299 - i];
    }"""
    image = Program(source).compile(arch).image
    monkeypatch.setattr(Program, "compile", lambda *_: CodeObject(image, arch, {}))
    monkeypatch.setattr(Specialisation, "render", lambda *_: source)
    monkeypatch.setattr(Specialisation, "headers", lambda _: {})
    with caplog.at_level(logging.WARNING, "hipattn"):
        loader.build(replace(ONE, constants={"BLOCK": 1024}), arch)
    assert kernels(image)["one_struct"].spills
    assert f"one_struct_block1024 does not fit the registers of {arch} and is slow" in caplog.text


@pytest.mark.skipif(not bindings.platform().simulated, reason="needs a simulated GPU")
def test_a_simulated_code_object_has_no_metadata(image: bytes, arch: str) -> None:
    assert kernels(image) == {}
    assert check(image, ONE, arch) is None


@pytest.mark.parametrize("image", [b"", b"no code object", b"\x7fELF", b"\x7fELF" + bytes(60)])
def test_what_is_no_code_object_is_refused(image: bytes) -> None:
    with pytest.raises(CodeObjectError, match=f"the code object of {len(image)} bytes cannot be read"):
        kernels(image)


@real
def test_a_truncated_code_object_is_refused(image: bytes) -> None:
    for length in range(0, len(image), 61):
        with pytest.raises(CodeObjectError, match=f"the code object of {length} bytes cannot be read"):
            kernels(image[:length])
