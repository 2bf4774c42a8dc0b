from __future__ import annotations

from pathlib import Path

import pytest

from hipattn import ArgumentError, CompileError
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.program import Program, compiler_version
from hipattn.runtime import bindings

pytestmark = pytest.mark.rocm
EMPTY = 'extern "C" __global__ void empty() {}\n'


def compilations(calls: list[tuple[str, tuple[object, ...]]]) -> int:
    return [name for name, _ in calls].count("hiprtcCompileProgram")


def test_a_code_object_is_an_elf_file(arch: str) -> None:
    code = Program(EMPTY).compile(arch)
    assert code.image[:4] == b"\x7fELF"
    assert code.arch == arch
    assert code.lowered == {}


def test_an_unknown_arch_is_refused_first() -> None:
    with (
        bindings.record() as calls,
        pytest.raises(ArgumentError, match=r"arch is 'gfx000'; accepted: .*gfx942"),
    ):
        Program(EMPTY).compile("gfx000")
    assert not calls


def test_a_source_that_does_not_compile(arch: str) -> None:
    source = "int first;\nint second = nothing_of_that_name;\n"
    program = Program(source, "broken.hip", options=("-DOPTION=1",))
    with bindings.record() as calls, pytest.raises(CompileError) as caught:
        program.compile(arch)
    error = caught.value
    assert (error.name, error.source) == ("broken.hip", source)
    says = "broken.hip:2:14: error: use of undeclared identifier 'nothing_of_that_name'"
    if bindings.platform().name == "nvidia":
        says = 'broken.hip(2): error: identifier "nothing_of_that_name" is undefined'
    assert error.log.startswith(says)
    assert error.options == (f"--offload-arch={arch}", "-std=c++17", "-O3", "-DOPTION=1")
    for part in ("broken.hip does not compile", "nothing_of_that_name", "-DOPTION=1", "    2 | int second"):
        assert part in str(error)
    assert [name for name, _ in calls][-1] == "hiprtcDestroyProgram"


def test_options_and_headers_reach_the_compiler(arch: str) -> None:
    source = '#include "values/one.h"\nstatic_assert(ONE == 1 && TWO == 2, "");\n' + EMPTY
    headers = {"values/one.h": "#define ONE 1\n", "unused.h": "#error unused\n"}
    Program(source, headers=headers, options=("-DTWO=2",)).compile(arch)
    with pytest.raises(CompileError):
        Program(source, headers=headers).compile(arch)


def test_a_log_names_files_as_the_program_does(arch: str) -> None:
    program = Program('#include "values/bad.h"\n', "file.hip", headers={"values/bad.h": "\n#error bad\n"})
    with pytest.raises(CompileError) as caught:
        program.compile(arch)
    says = "In file included from file.hip:1:\nvalues/bad.h:2:2: error: bad\n"
    if bindings.platform().name == "nvidia":
        says = "values/bad.h(2): catastrophic error: #error directive: bad\n"
    assert caught.value.log.startswith(says)


def test_name_expressions_are_lowered(arch: str) -> None:
    source = "template <typename T> __global__ void fill(T* p) { *p = T(1); }\n"
    program = Program(source, name_expressions=("fill<float>", "fill<int>", "fill<int>"))
    lowered = program.compile(arch).lowered
    assert lowered == {"fill<float>": "_Z4fillIfEvPT_", "fill<int>": "_Z4fillIiEvPT_"}


def test_the_cache_saves_a_compilation(arch: str, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    with bindings.record() as calls:
        first = Program(EMPTY).compile(arch, cache)
        second = Program(EMPTY).compile(arch, cache)
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
def test_the_cache_tells_programs_apart(arch: str, tmp_path: Path, other: Program) -> None:
    cache = DiskCache(tmp_path)
    Program(EMPTY).compile(arch, cache)
    with bindings.record() as calls:
        other.compile(arch, cache)
    assert compilations(calls) == 1


def test_a_damaged_entry_is_compiled_again(arch: str, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    first = Program(EMPTY).compile(arch, cache)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:100])
    with bindings.record() as calls:
        assert Program(EMPTY).compile(arch, cache).arch == first.arch
    assert compilations(calls) == 1


def test_the_compiler_s_version_names_platform_and_build() -> None:
    platform = bindings.platform()
    assert compiler_version().startswith(f"{platform.name}:{platform.fingerprint}:")
    assert platform.fingerprint
