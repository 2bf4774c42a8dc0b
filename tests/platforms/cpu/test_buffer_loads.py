"""Loads whose bounds the chip checks: what lies past the buffer is read as zeros, each 32 bits for themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.platforms.cpu.simulator import run


@pytest.mark.parametrize(("bits", "element"), [(16, "short"), (32, "int"), (64, "int2"), (128, "int4")])
def test_past_the_end(bits: int, element: str) -> None:
    whole, lanes, inside = 40, 24, 74  # bytes of the buffer, offsets tried, and one that 2^31 is added to
    code = f"""
    extern "C" __global__ void kernel(char* data, {element}* out) {{
        auto buffer = __builtin_amdgcn_make_buffer_rsrc(data, 0, {whole}, 0x20000);
        unsigned offset = threadIdx.x == {lanes - 1} ? 0x80000000 + {inside} : threadIdx.x * 2;
        out[threadIdx.x] =
            __builtin_bit_cast({element}, __builtin_amdgcn_raw_buffer_load_b{bits}(buffer, offset, 0, 0));
    }}"""
    data = np.arange(1, 61, dtype=np.uint8)
    size = bits // 8
    _, out = run(code, "gfx942", data, np.full(lanes * size, 0xFF, np.uint8), block=lanes)
    word = min(size, 4)
    padded = np.concatenate([data, np.zeros(64, np.uint8)])
    for lane, got in enumerate(out.reshape(lanes, size)):
        for at in range(0, size, word):
            first = lane * 2 + at
            exists = lane < lanes - 1 and first + word <= whole
            expected = padded[first : first + word] if exists else 0
            np.testing.assert_array_equal(got[at : at + word], expected, f"lane {lane}, byte {at}")
