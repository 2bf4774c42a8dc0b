"""ROCm is installed and there is no GPU: compiling works, and what needs a device says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import hipattn
from hipattn import Device, PlatformError, Stream
from hipattn.compiler.program import Program

pytestmark = [pytest.mark.rocm, pytest.mark.skipif(Device.count() > 0, reason="there is a GPU")]

ARCH = "gfx1151"


@pytest.mark.parametrize(
    "use",
    [
        Device,
        Stream,
        hipattn.HipAttentionKernels,
        lambda: hipattn.DeviceTensor.from_numpy(np.zeros(3, np.float32)),
        lambda: hipattn.attention(*[np.zeros((1, 4, 1, 8), np.float32)] * 3),
        lambda: hipattn.Module(Program('extern "C" __global__ void k() {}').compile(ARCH).image),
    ],
    ids=["device", "stream", "kernels", "tensor", "attention", "module"],
)
def test_what_needs_a_gpu_says_so(use: Callable[[], object]) -> None:
    message = "there is no GPU: the amd platform's libraries are here, .*hipErrorNoDevice.*HIPATTN_PLATFORM=cpu"
    with pytest.raises(PlatformError, match=message):
        use()
