"""What hiprtc does with what it is given: the same from AMD's and from the simulator's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from hipattn.runtime import bindings
from hipattn.runtime.bindings import check, hiprtc

pytestmark = [
    pytest.mark.rocm,
    pytest.mark.skipif(
        bindings.platform().name == "nvidia", reason="NVRTC compiles for no AMD GPU, and words its own log"
    ),
]

Status = hiprtc.hiprtcResult
ARCH = "--offload-arch=gfx942"
KERNEL = 'extern "C" __global__ void kernel(float* p) { *p = 1; }\n'
UNKNOWN = "use of undeclared identifier 'nothing'"

Create = Callable[..., Any]


@pytest.fixture
def create() -> Iterator[Create]:
    """Return a function that makes a program."""
    made = []

    def create(source: str = KERNEL, name: str = "file.hip") -> Any:
        program = check(
            hiprtc.hiprtcCreateProgram(source.encode(), name.encode(), 0, None, None), "hiprtcCreateProgram"
        )
        made.append(program)
        return program

    yield create
    for program in made:
        assert hiprtc.hiprtcDestroyProgram(program.createRef())[0] == Status.HIPRTC_SUCCESS


def compiled(program: Any, options: Sequence[str] = (ARCH,)) -> Any:
    return hiprtc.hiprtcCompileProgram(program, len(options), [option.encode() for option in options])[0]


def log(program: Any) -> str:
    text = bytearray(check(hiprtc.hiprtcGetProgramLogSize(program), "hiprtcGetProgramLogSize"))
    if text:
        check(hiprtc.hiprtcGetProgramLog(program, text), "hiprtcGetProgramLog")
    return text.decode()


def code_size(program: Any) -> int:
    return check(hiprtc.hiprtcGetCodeSize(program), "hiprtcGetCodeSize")


# ---- the log ----


def test_a_log_has_no_final_zero(create: Create) -> None:
    program = create("\nint x = nothing;\n")
    assert compiled(program) == Status.HIPRTC_ERROR_COMPILATION
    assert f"file.hip:2:9: error: {UNKNOWN}\n" in log(program)
    assert log(program).endswith("\n1 error generated when compiling for gfx942.\n")


def test_nothing_to_say(create: Create) -> None:
    program = create()
    assert compiled(program) == Status.HIPRTC_SUCCESS
    assert log(program) == ""


def test_a_warning_is_logged(create: Create) -> None:
    program = create("#warning careful\n" + KERNEL)
    assert compiled(program) == Status.HIPRTC_SUCCESS
    assert "file.hip:1:2: warning: careful" in log(program)


def test_logs_of_one_program_add_up(create: Create) -> None:
    program = create("int x = nothing;\n")
    for times in (1, 2):
        assert compiled(program) == Status.HIPRTC_ERROR_COMPILATION
        assert log(program).count(UNKNOWN) == times


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [
        [ARCH, "-O9"],
        [ARCH, "-DVALUE=1"],
        [ARCH, "-D", "VALUE=1"],
        [ARCH, "--std=c++20"],
        [ARCH, ""],
        ["--gpu-architecture=gfx942"],
        ["--offload-arch=gfx942:sramecc+:xnack-"],
    ],
    ids=" ".join,
)
def test_accepted(create: Create, options: list[str]) -> None:
    program = create()
    assert compiled(program, options) == Status.HIPRTC_SUCCESS, log(program)


@pytest.mark.parametrize("option", ["--nonsense", "-nonsense", "-fnonsense", "--use_fast_math"])
def test_unknown(create: Create, option: str) -> None:
    program = create()
    assert compiled(program, [ARCH, option]) == Status.HIPRTC_ERROR_COMPILATION
    assert log(program) == f"error: unknown argument: '{option}'\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--offload-arch=gfx1"],
        ["--offload-arch="],
        ["--offload-arch=gfx1100:xnack-"],
        ["--offload-arch", "gfx942"],
        [ARCH, "-std=c++99"],
        [ARCH, "-mllvm"],
        [ARCH, "-DVALUE=1 -DOTHER=2", "-DTEST"],
        [ARCH, " -DVALUE=1"],
    ],
    ids=" ".join,
)
def test_refused(create: Create, options: list[str]) -> None:
    program = create("#ifdef VALUE\nstatic_assert(VALUE == 1);\n#endif\n" + KERNEL)
    assert compiled(program, options) == Status.HIPRTC_ERROR_COMPILATION
    assert code_size(program) == 0


@pytest.mark.parametrize("name", ["NDEBUG", "INFINITY", "NAN", "assert", "NULL", "__CUDACC__", "_WIN32"])
def test_not_defined(create: Create, name: str) -> None:
    program = create(f"#ifdef {name}\n#error defined\n#endif\n" + KERNEL)
    assert compiled(program) == Status.HIPRTC_SUCCESS


@pytest.mark.parametrize(
    "name", ["__HIP__", "__HIPCC_RTC__", "__HIP_DEVICE_COMPILE__", "__AMDGCN__", "__gfx942__", "__GFX9__"]
)
def test_defined(create: Create, name: str) -> None:
    program = create(f"#ifndef {name}\n#error not defined\n#endif\n" + KERNEL)
    assert compiled(program) == Status.HIPRTC_SUCCESS


# ---- programs ----


def test_an_empty_source_is_no_program() -> None:
    assert hiprtc.hiprtcCreateProgram(b"", b"file.hip", 0, None, None)[0] == Status.HIPRTC_ERROR_INVALID_INPUT


def test_a_program_that_is_not_compiled(create: Create) -> None:
    program = create()
    assert (log(program), code_size(program)) == ("", 0)
    assert hiprtc.hiprtcGetCode(program, bytearray(1))[0] == Status.HIPRTC_SUCCESS
    assert hiprtc.hiprtcGetLoweredName(program, b"kernel")[0] == Status.HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID


def test_a_program_compiles_once(create: Create) -> None:
    program = create()
    assert compiled(program) == Status.HIPRTC_SUCCESS
    size = code_size(program)
    assert compiled(program) == Status.HIPRTC_ERROR_COMPILATION
    assert "error: duplicate symbol: " in log(program)
    assert code_size(program) == size > 0


def test_a_source_without_a_kernel_compiles(create: Create) -> None:
    program = create("__device__ int x;\n")
    assert compiled(program) == Status.HIPRTC_SUCCESS
    assert code_size(program) > 0


def test_a_function_that_is_not_defined(create: Create) -> None:
    program = create('__device__ int other(); extern "C" __global__ void kernel(int* p) { *p = other(); }\n')
    assert compiled(program) == Status.HIPRTC_ERROR_COMPILATION
    assert "undefined" in log(program)
    assert "other" in log(program)


def test_only_code_for_linking_has_bitcode(create: Create) -> None:
    program = create()
    assert compiled(program) == Status.HIPRTC_SUCCESS
    assert hiprtc.hiprtcGetBitcodeSize(program)[0] == Status.HIPRTC_ERROR_INVALID_PROGRAM


# ---- name expressions ----

NAMES = """template <class T> __global__ void fill(T* p) { *p = 1; }
namespace deep { __global__ void inner() {} }
__device__ int variable;
__constant__ float table[3];
"""


def add(program: Any, expression: str) -> Any:
    return hiprtc.hiprtcAddNameExpression(program, expression.encode())[0]


def lowered(program: Any, expression: str) -> str | None:
    status, name = hiprtc.hiprtcGetLoweredName(program, expression.encode())
    if status:
        assert status == Status.HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID
        return None
    return name.decode() if isinstance(name, bytes) else str(name)


def test_lowered_names(create: Create) -> None:
    expected = {
        "fill<float>": "_Z4fillIfEvPT_",
        "&fill<int>": "_Z4fillIiEvPT_",
        "fill< long >": "_Z4fillIlEvPT_",
        "deep::inner": "_ZN4deep5innerEv",
        "variable": "variable",
        "&table": "table",
    }
    program = create(NAMES)
    assert [add(program, expression) for expression in expected] == [Status.HIPRTC_SUCCESS] * len(expected)
    assert compiled(program) == Status.HIPRTC_SUCCESS, log(program)
    assert {expression: lowered(program, expression) for expression in expected} == expected
    assert lowered(program, "fill<char>") is None


@pytest.mark.parametrize("expression", ["nothing", "fill", "fill<nothing>", "(void*)fill<float>"])
def test_an_expression_that_names_nothing_does_not_compile(create: Create, expression: str) -> None:
    program = create(NAMES)
    assert add(program, expression) == Status.HIPRTC_SUCCESS
    assert compiled(program) == Status.HIPRTC_ERROR_COMPILATION
    assert "error:" in log(program)
    assert lowered(program, expression) is None


def test_an_expression_given_twice_does_not_compile(create: Create) -> None:
    program = create(NAMES)
    assert [add(program, "fill<int>") for _ in range(2)] == [Status.HIPRTC_SUCCESS] * 2
    assert compiled(program) == Status.HIPRTC_ERROR_COMPILATION
    assert "error: redefinition of " in log(program)


def test_an_empty_expression_is_refused(create: Create) -> None:
    assert add(create(), "") == Status.HIPRTC_ERROR_INVALID_INPUT


def test_an_expression_given_late_has_no_lowered_name(create: Create) -> None:
    program = create()
    assert compiled(program) == Status.HIPRTC_SUCCESS
    assert add(program, "kernel") == Status.HIPRTC_SUCCESS
    assert lowered(program, "kernel") is None
