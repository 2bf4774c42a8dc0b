from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from hipattn import ArgumentError, CompileError
from hipattn.compiler import specialise
from hipattn.compiler.program import Program
from hipattn.compiler.specialise import Specialisation, render_struct, source_dir
from hipattn.compiler.target import ARCHS, wave_size
from hipattn.runtime import Arguments

pytestmark = pytest.mark.rocm


class AllParams(Arguments):
    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("small", ctypes.c_int32),
        ("large", ctypes.c_int64),
        ("steps", ctypes.c_int64 * 3),
        ("count", ctypes.c_uint32),
        ("factor", ctypes.c_float),
    )


def test_a_struct_is_laid_out_as_in_python(arch: str) -> None:
    text = render_struct(AllParams)
    for line in (
        "void* pointer;",
        "int small;",
        "long long large;",
        "long long steps[3];",
        "unsigned count;",
    ):
        assert line in text
    Program(text + 'extern "C" __global__ void f(AllParams p) {}\n').compile(arch)


def test_a_struct_that_differs_from_python_s_does_not_compile(arch: str) -> None:
    text = render_struct(AllParams)
    swapped = text.replace("void* pointer;", "swap").replace("long long large;", "void* pointer;")
    source = swapped.replace("swap", "long long large;") + 'extern "C" __global__ void f(AllParams p) {}\n'
    with pytest.raises(CompileError, match="AllParams differs from its declaration in Python"):
        Program(source).compile(arch)


def test_a_struct_with_another_type_is_refused() -> None:
    class Wrong(Arguments):
        _fields_ = (("x", ctypes.c_double),)

    with pytest.raises(ArgumentError, match=r"Wrong.x is c_double; accepted: .*c_float"):
        render_struct(Wrong)


def test_constants_are_typed() -> None:
    specialisation = Specialisation(
        "scale",
        "scale_inplace",
        AllParams,
        {"A": 3, "B": True, "C": 0.1, "D": 1 << 40},
        {"scalar": "bfloat16"},
    )
    text = specialisation.render("gfx942")
    for line in (
        "constexpr int WAVE_SIZE = 64;",
        "constexpr int A = 3;",
        "constexpr bool B = true;",
        f"constexpr float C = {(0.1).hex()}f;",
        f"constexpr long long D = {1 << 40}LL;",
        "using scalar = __bf16;",
        '#line 1 "scale.hip"',
    ):
        assert line in text
    assert text.endswith((source_dir() / "scale.hip").read_text())
    assert "WAVE_SIZE = 32;" in specialisation.render("gfx1100")


def fill(dtype: str = "float16", block: int = 256) -> Specialisation:
    return Specialisation("fill", "fill_rows", AllParams, {"BLOCK": block}, {"scalar": dtype})


def test_the_name_says_what_was_decided() -> None:
    assert fill().name == "fill_rows_float16_block256"


def test_specialisations_are_keys() -> None:
    assert fill() == fill()
    assert hash(fill()) == hash(fill())
    assert len({fill(), fill(block=128), fill("bfloat16")}) == 3


def test_headers_are_those_that_are_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "include").mkdir()
    for name, text in (("first", '#include "second.h"\n'), ("second", "int x;\n"), ("third", "int x;\n")):
        (tmp_path / "include" / f"{name}.h").write_text(text)
    (tmp_path / "fill.hip").write_text('#include "first.h"\n')
    monkeypatch.setattr(specialise, "source_dir", lambda: tmp_path)
    monkeypatch.setattr(specialise, "headers", specialise.headers.__wrapped__)
    assert set(fill().headers()) == {"first.h", "second.h"}


@pytest.mark.parametrize("arch", ARCHS)
def test_wave_sizes(arch: str) -> None:
    assert wave_size(arch) == (64 if arch.startswith("gfx9") else 32)


def test_an_unknown_arch_is_refused() -> None:
    with pytest.raises(ArgumentError, match="arch is 'gfx1'; accepted"):
        wave_size("gfx1")
