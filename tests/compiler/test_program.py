from __future__ import annotations

from pathlib import Path

import pytest

from hipattn import ArgumentError, CompileError, Device
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.program import Program, compiler_version
from hipattn.runtime import bindings

EMPTY = 'extern "C" __global__ void empty() {}\n'


def compilations(calls: list[tuple[str, tuple[object, ...]]]) -> int:
    return [name for name, _ in calls].count("hiprtcCompileProgram")


def test_a_code_object_is_an_elf_file(device: Device) -> None:
    code = Program(EMPTY).compile(device.arch)
    assert code.image[:4] == b"\x7fELF"
    assert code.arch == device.arch
    assert code.lowered == {}


def test_an_unknown_arch_is_refused_first() -> None:
    with (
        bindings.record() as calls,
        pytest.raises(ArgumentError, match=r"arch is 'gfx000'; accepted: .*gfx942"),
    ):
        Program(EMPTY).compile("gfx000")
    assert not calls


def test_a_source_that_does_not_compile(device: Device) -> None:
    source = "int first;\nint second = nothing_of_that_name;\n"
    program = Program(source, "broken.hip", options=("-DOPTION=1",))
    with bindings.record() as calls, pytest.raises(CompileError) as caught:
        program.compile(device.arch)
    error = caught.value
    assert (error.name, error.source) == ("broken.hip", source)
    assert "nothing_of_that_name" in error.log
    assert error.options == (f"--offload-arch={device.arch}", "-std=c++17", "-O3", "-DOPTION=1")
    for part in ("broken.hip does not compile", "nothing_of_that_name", "-DOPTION=1", "    2 | int second"):
        assert part in str(error)
    assert [name for name, _ in calls][-1] == "hiprtcDestroyProgram"


def test_options_and_headers_reach_the_compiler(device: Device) -> None:
    source = '#include "values/one.h"\nstatic_assert(ONE == 1 && TWO == 2, "");\n' + EMPTY
    headers = {"values/one.h": "#define ONE 1\n", "unused.h": "#error unused\n"}
    Program(source, headers=headers, options=("-DTWO=2",)).compile(device.arch)
    with pytest.raises(CompileError):
        Program(source, headers=headers).compile(device.arch)


def test_name_expressions_are_lowered(device: Device) -> None:
    source = "template <typename T> __global__ void fill(T* p) { *p = T(1); }\n"
    program = Program(source, name_expressions=("fill<float>", "fill<int>"))
    lowered = program.compile(device.arch).lowered
    assert lowered == {"fill<float>": "_Z4fillIfEvPT_", "fill<int>": "_Z4fillIiEvPT_"}


def test_the_cache_saves_a_compilation(device: Device, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    with bindings.record() as calls:
        first = Program(EMPTY).compile(device.arch, cache)
        second = Program(EMPTY).compile(device.arch, cache)
    assert compilations(calls) == 1
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        Program(EMPTY + " "),
        Program(EMPTY, "name.hip"),
        Program(EMPTY, headers={"a.h": "int a;"}),
        Program(EMPTY, options=("-DX",)),
    ],
    ids=["source", "name", "headers", "options"],
)
def test_the_cache_tells_programs_apart(device: Device, tmp_path: Path, other: Program) -> None:
    cache = DiskCache(tmp_path)
    Program(EMPTY).compile(device.arch, cache)
    with bindings.record() as calls:
        other.compile(device.arch, cache)
    assert compilations(calls) == 1


def test_a_damaged_entry_is_compiled_again(device: Device, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    first = Program(EMPTY).compile(device.arch, cache)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:100])
    with bindings.record() as calls:
        assert Program(EMPTY).compile(device.arch, cache).arch == first.arch
    assert compilations(calls) == 1


def test_the_compiler_s_version_names_platform_and_build() -> None:
    platform = bindings.platform()
    assert compiler_version().startswith(f"{platform.name}:{platform.fingerprint}:")
    assert platform.fingerprint
