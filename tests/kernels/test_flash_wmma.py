"""The layers over WMMA: what their own conversions compute, bit for bit."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

from hipattn import DeviceTensor, Stream
from hipattn.compiler.program import Program
from hipattn.kernels import flash_fwd
from hipattn.kernels.flash_tiles import choose
from hipattn.runtime.module import Arguments, LaunchConfig, Module

NARROW = """
struct NarrowParams { const float* wide; scalar* narrow; };
extern "C" __global__ __launch_bounds__(128) void narrow_all(const NarrowParams p) {
    const i64 at = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    *reinterpret_cast<Eight*>(p.narrow + at) = narrow(*reinterpret_cast<const Accumulator*>(p.wide + at));
}
"""


class NarrowParams(Arguments):
    _fields_ = (("wide", ctypes.c_void_p), ("narrow", ctypes.c_void_p))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=str)
def test_weights_are_rounded_to_nearest_even(stream: Stream, dtype: np.dtype) -> None:
    device = stream.device
    tiles = choose(device.arch, dtype.name, 64, 64)
    if tiles is None or tiles.layer not in ("mma_rdna3.h", "mma_rdna4.h"):
        pytest.skip(f"{device.arch} has no WMMA")
    specialisation = flash_fwd.specialise(tiles, dtype.name, 64, 64, flash_fwd.Features(), vector=8)
    source = specialisation.render(device.arch) + NARROW
    image = Program(source, "narrow.hip", headers=specialisation.headers()).compile(device.arch).image

    # Around every tie of [1, 2), and what is scaled from it down to the least weight that matters.
    halves = np.arange(1 << 11, dtype=np.uint32) << 12 | 0x3F800000
    bits = (halves[:, None] + np.array([0, 1, 0x7FF, 0x800, 0x801, 0xFFF], dtype=np.uint32)).ravel()
    weights = np.concatenate([bits.view(np.float32) * np.float32(2.0**e) for e in (8, 0, -1, -13, -30)])
    weights = np.concatenate([weights, np.float32([0, np.nan])])
    weights = np.resize(weights, -(-weights.size // 1024) * 1024)

    wide, narrow = DeviceTensor.from_numpy(weights), DeviceTensor.from_numpy(np.zeros(weights.size, dtype))
    params = NarrowParams()
    params.wide, params.narrow = wide.pointer, narrow.pointer
    with Module(image, device) as module:
        module.kernel("narrow_all", NarrowParams).launch(stream, LaunchConfig(weights.size // 1024, 128), params)
        stream.sync()
    np.testing.assert_array_equal(narrow.numpy().astype(np.float32), weights.astype(dtype).astype(np.float32))
