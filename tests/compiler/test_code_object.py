from __future__ import annotations

import ctypes

import pytest

from hipattn import ArgumentError, Device
from hipattn.compiler.code_object import check_arguments, kernels
from hipattn.compiler.program import Program
from hipattn.runtime import Arguments, bindings


class TwoParams(Arguments):
    _fields_ = (("a", ctypes.c_void_p), ("b", ctypes.c_int64))


class ThreeParams(Arguments):
    _fields_ = (*TwoParams._fields_, ("c", ctypes.c_int64))


SOURCE = """
struct TwoParams { void* a; long long b; };
extern "C" __global__ void one_struct(TwoParams p) { *static_cast<long long*>(p.a) = p.b; }
extern "C" __global__ void two_values(long long* a, long long b) { *a = b; }
"""

real = pytest.mark.skipif(bindings.platform().simulated, reason="a simulated GPU's code object has no metadata")


@pytest.fixture
def image(device: Device) -> bytes:
    return Program(SOURCE).compile(device.arch).image


@real
def test_kernels_of_a_code_object(image: bytes) -> None:
    found = kernels(image)
    assert set(found) == {"one_struct", "two_values"}
    assert found["one_struct"][".kernarg_segment_size"] >= 16


@real
def test_arguments_are_checked(image: bytes) -> None:
    check_arguments(image, "one_struct", TwoParams)
    with pytest.raises(ArgumentError, match=r"kernel one_struct takes .*; ThreeParams is one struct of 24 bytes"):
        check_arguments(image, "one_struct", ThreeParams)
    with pytest.raises(ArgumentError, match="kernel two_values takes"):
        check_arguments(image, "two_values", TwoParams)
    with pytest.raises(ArgumentError, match="no kernel other; it has one_struct, two_values"):
        check_arguments(image, "other", TwoParams)


@pytest.mark.skipif(not bindings.platform().simulated, reason="needs a simulated GPU")
def test_a_simulated_code_object_has_no_metadata(image: bytes) -> None:
    assert kernels(image) == {}
    check_arguments(image, "one_struct", ThreeParams)


@pytest.mark.parametrize("image", [b"", b"no code object", b"\x7fELF", b"\x7fELF" + bytes(60)])
def test_what_is_no_code_object_is_refused(image: bytes) -> None:
    with pytest.raises(ArgumentError, match=f"the code object of {len(image)} bytes cannot be read"):
        kernels(image)
