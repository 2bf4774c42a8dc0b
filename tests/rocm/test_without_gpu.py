"""ROCm is installed and there is no GPU: compiling works, and what needs a device says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import hipattn
from hipattn import ArgumentError, Device, PlatformError, Stream
from hipattn.compiler.program import Program
from hipattn.kernels import scale
from hipattn.runtime import bindings

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


def test_the_cache_is_filled_for_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path))
    wanted = [scale.specialise("float16", 8), scale.specialise("float32", 4)]
    with bindings.record() as calls:
        first = hipattn.compile(ARCH, wanted)
    assert list(first) == ["scale_inplace_float16_block256_vector8", "scale_inplace_float32_block256_vector4"]
    assert [name for name, _ in calls].count("hiprtcCompileProgram") == 2
    with bindings.record() as calls:
        assert hipattn.compile(ARCH, wanted) == first
    assert not calls


def test_an_unknown_arch_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"arch is 'gfx1'; accepted: .*gfx1151"):
        hipattn.compile("gfx1")
