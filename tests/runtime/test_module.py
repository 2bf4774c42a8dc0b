from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np
import pytest

from hipattn import ArgumentError, ClosedError, Device, DeviceTensor, HipError, LaunchConfig, Module, Stream
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.program import Program
from hipattn.compiler.specialise import render_struct
from hipattn.runtime import Arguments, bindings
from hipattn.runtime.module import Extra


class FillParams(Arguments):
    _fields_ = (("out", ctypes.c_void_p), ("count", ctypes.c_int64), ("value", ctypes.c_float))


class OtherParams(Arguments):
    _fields_ = FillParams._fields_


SOURCE = f"""
{render_struct(FillParams)}
extern "C" __global__ void fill(const FillParams p) {{
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < p.count) static_cast<float*>(p.out)[i] = p.value;
}}
"""


@pytest.fixture
def module(device: Device) -> Any:
    with Module(Program(SOURCE, "fill.hip").compile(device.arch, DiskCache()).image, device) as module:
        yield module


@pytest.mark.parametrize(
    ("grid", "block", "expected"),
    [
        (3, 64, ((3, 1, 1), (64, 1, 1))),
        ((3, 2), (8, 8, 4), ((3, 2, 1), (8, 8, 4))),
        (1, 1024, ((1, 1, 1), (1024, 1, 1))),
    ],
)
def test_launch_config(grid: Any, block: Any, expected: Any) -> None:
    config = LaunchConfig(grid, block, 100)
    assert ((config.grid, config.block), config.shmem_size) == (expected, 100)
    assert config == LaunchConfig(grid, block, 100)
    assert hash(config) == hash(LaunchConfig(grid, block, 100))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 64), "grid is 0; it takes 1 to 3 integers of 1 or more"),
        (((1, -1), 64), r"grid is \(1, -1\)"),
        (((1, 1, 1, 1), 64), "grid is"),
        (((), 64), "grid is"),
        ((1.5, 64), "grid is 1.5"),
        ((1, (1, 0)), r"block is \(1, 0\)"),
        ((1, 1025), "block is 1025, 1025 threads; a block has at most 1024"),
        ((1, (32, 32, 2)), "2048 threads"),
        ((1, 64, -1), "shmem_size is -1; it takes 0 or more bytes"),
    ],
)
def test_launch_configs_that_are_refused(arguments: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        LaunchConfig(*arguments)


def test_the_extra_array_of_a_launch() -> None:
    extra = Extra(ctypes.sizeof(FillParams))
    for arguments in (FillParams(0x1000, 3, 1.5), FillParams(0x2000, 3, 1.5)):
        extra.point_to(arguments)
        pointer, address, size, at, end = (ctypes.c_void_p * 5).from_address(int(extra.native))
        assert (pointer, address, size, end) == (1, ctypes.addressof(arguments), 2, 3)
        assert ctypes.c_size_t.from_address(at).value == ctypes.sizeof(FillParams)


@pytest.mark.parametrize("count", [1, 63, 64, 1000])
def test_launch(module: Module, count: int) -> None:
    kernel = module.kernel("fill", FillParams)
    with Stream(module.device) as stream:
        out = DeviceTensor.from_numpy(np.full(1100, np.nan, np.float32), stream=stream)
        config = LaunchConfig(-(-count // 64), 64)
        arguments = FillParams(out.pointer, count, 2.0)
        kernel.launch(stream, config, arguments)
        arguments.value, arguments.count = 3.0, 1  # the first launch has its own copy
        kernel.launch(stream, LaunchConfig(1, 64), arguments)
        result = out.numpy()
    assert result[0] == 3
    assert (result[1:count] == 2).all()
    assert np.isnan(result[count:]).all()


def test_other_arguments_are_refused(module: Module, stream: Stream) -> None:
    kernel = module.kernel("fill", FillParams)
    with bindings.record() as calls:
        for wrong in (OtherParams(0, 0, 0.0), None, (0, 0, 0.0)):
            with pytest.raises(
                ArgumentError, match=rf"arguments is {type(wrong).__name__}; kernel fill takes FillParams"
            ):
                kernel.launch(stream, LaunchConfig(1, 64), wrong)  # type: ignore[arg-type]
    assert not calls


def test_a_launch_that_is_refused_says_what_it_was(module: Module) -> None:
    kernel = module.kernel("fill", FillParams)
    with Stream(module.device) as stream:
        with pytest.raises(HipError, match=r"kernel fill, grid \(1, 1, 1\), block \(64, 1, 1\), lds 1000000000"):
            kernel.launch(stream, LaunchConfig(1, 64, 1_000_000_000), FillParams(0, 0, 0.0))
        stream.sync()  # and the device works on


def test_a_missing_kernel_is_named(module: Module) -> None:
    with pytest.raises(HipError, match=r"hipModuleGetFunction \(kernel nothing.*: hipErrorNotFound"):
        module.kernel("nothing", FillParams)


@pytest.mark.parametrize("image", [b"", b"no code object", b"\x7fELF" + bytes(100)])
def test_an_image_that_is_none(device: Device, image: bytes) -> None:
    with pytest.raises(HipError, match=f"hipModuleLoadData .bytes {len(image)}"):
        Module(image, device)


def test_closing_twice_is_once(device: Device) -> None:
    image = Program(SOURCE, "fill.hip").compile(device.arch, DiskCache()).image
    gc.collect()
    module = Module(image, device)
    with bindings.record() as calls:
        module.close()
        module.close()
        del module
    assert [name for name, _ in calls].count("hipModuleUnload") == 1
    module = Module(image, device)
    module.close()
    with pytest.raises(ClosedError, match="the module is closed"):
        module.kernel("fill", FillParams)


def test_a_kernel_keeps_its_module(device: Device) -> None:
    image = Program(SOURCE, "fill.hip").compile(device.arch, DiskCache()).image
    kernel = Module(image, device).kernel("fill", FillParams)
    gc.collect()
    with Stream(device) as stream:
        out = DeviceTensor.from_numpy(np.zeros(4, np.float32), stream=stream)
        kernel.launch(stream, LaunchConfig(1, 64), FillParams(out.pointer, 4, 5.0))
        np.testing.assert_array_equal(out.numpy(), [5, 5, 5, 5])


def test_a_kernel_of_a_closed_module_is_refused(module: Module, stream: Stream) -> None:
    kernel = module.kernel("fill", FillParams)
    module.close()
    with pytest.raises(ClosedError, match="the module of kernel fill is closed"):
        kernel.launch(stream, LaunchConfig(1, 64), FillParams(0, 0, 0.0))
