"""Products of tensors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hipattn import ArgumentError, ClosedError, Device, DeviceTensor, Stream
from hipattn.matmul import matmul
from hipattn.runtime import bindings
from tests.helpers.gate import held
from tests.helpers.inputs import poisoned


@pytest.mark.parametrize("accumulate", [False, True])
def test_views(stream: Stream, accumulate: bool) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5, 9), (3, 7, 9), (3, 5, 7)))
    left, right = (DeviceTensor.from_numpy(x, stream=stream) for x in (a, b))
    out = DeviceTensor.from_numpy(c, stream=stream) if accumulate else poisoned(stream, c.shape, c.dtype)
    assert matmul(left[..., 1:], right[..., 1:].transpose(0, 2, 1), out, accumulate=accumulate, stream=stream) is out
    expected = a[..., 1:].astype(float) @ b[..., 1:].swapaxes(1, 2) + c * accumulate
    np.testing.assert_allclose(out.numpy(stream=stream), expected, rtol=0, atol=1e-5)


def test_memory_of_another_stream_is_freed_after_the_product(stream: Stream, device: Device) -> None:
    if not device.memory_pools:
        pytest.skip("freeing waits")
    a = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    out = poisoned(stream, (4, 4), a.dtype)
    with Stream(device) as other:
        left = DeviceTensor.from_numpy(a, stream=other)
        right = DeviceTensor.from_numpy(a, stream=stream)
        matmul(right, right, out, stream=stream)  # what is made at first use, is
        with held(stream) as gate:
            matmul(left, right, out, stream=stream)
            left.buffer.close()
            gate.open()
        np.testing.assert_allclose(out.numpy(stream=stream), a.astype(float) @ a, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (4, 4), (4, 4)), r"a has shape \(4,\); it takes \[\*batch, rows, columns\]"),
        (((2, 3), (4, 5), (2, 5)), r"a \(2, 3\) @ b \(4, 5\) does not give out \(2, 5\)"),
    ],
)
def test_refused(stream: Stream, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    a, b, out = (DeviceTensor.empty(shape, stream=stream) for shape in shapes)
    with pytest.raises(ArgumentError, match=message):
        matmul(a, b, out, stream=stream)


@pytest.mark.skipif(not bindings.platform().simulated, reason="of the simulator's BLAS")
def test_the_process_ends_with_products_pending() -> None:
    script = """
import numpy as np
from hipattn import DeviceTensor, Stream
from hipattn.matmul import matmul
stream = Stream()
a, b, c = (DeviceTensor.from_numpy(np.ones((512, 512), np.float32), stream=stream) for _ in range(3))
for _ in range(300):
    matmul(a, b, c, stream=stream)
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("name", ["a", "b", "out"])
def test_closed_memory_is_refused_though_its_address_is_known(stream: Stream, name: str) -> None:
    tensors = {each: DeviceTensor.from_numpy(np.ones((3, 3), np.float32), stream=stream) for each in ("a", "b", "out")}
    matmul(**tensors, stream=stream)
    tensors[name].buffer.close()
    with pytest.raises(ClosedError, match="closed"):
        matmul(**tensors, stream=stream)
