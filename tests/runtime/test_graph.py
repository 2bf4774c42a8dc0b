"""Graphs: what is captured does not run, and runs in order at each launch."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from hipattn import (
    ArgumentError,
    Blas,
    ClosedError,
    Device,
    DeviceTensor,
    Graph,
    HipError,
    Stream,
    attention,
    attention_decode,
    free_scratch,
)
from hipattn.kernels import add, scale
from hipattn.matmul import matmul
from hipattn.runtime import bindings
from tests.helpers.gate import held

simulated = pytest.mark.skipif(not bindings.platform().simulated, reason="needs the simulator")


def ramp(stream: Stream) -> DeviceTensor:
    return DeviceTensor.from_numpy(np.arange(8, dtype=np.float32), stream=stream)


def warm(x: DeviceTensor, stream: Stream) -> None:
    """Load what is captured later."""
    scale.launch(x, 1.0, stream=stream)
    add.launch(x, DeviceTensor.from_numpy(np.zeros(8, np.float32), stream=stream), stream=stream)


def test_each_launch_runs_everything_in_order(stream: Stream) -> None:
    x = ramp(stream)
    warm(x, stream)
    one = DeviceTensor.from_numpy(np.ones(8, np.float32), stream=stream)

    def work() -> None:
        scale.launch(x, 2.0, stream=stream)
        add.launch(x, one, stream=stream)

    with Graph(stream, work) as graph:
        assert x.numpy().tolist() == list(range(8))  # nothing ran
        expected = np.arange(8)
        for _ in range(5):
            graph.launch()
            expected = 2 * expected + 1
        scale.launch(x, -1.0, stream=stream)  # the stream is as before
        assert x.numpy().tolist() == (-expected).tolist()


def test_launches_are_asynchronous_and_outlive_the_graph(stream: Stream) -> None:
    x = ramp(stream)
    warm(x, stream)
    graph = Graph(stream, lambda: scale.launch(x, 2.0, stream=stream))
    with held(stream) as gate:
        graph.launch()
        graph.launch()
        graph.close()
        graph.close()
        assert not stream.done
        gate.open()
    assert x.numpy().tolist() == [4 * i for i in range(8)]
    with pytest.raises(ClosedError, match="the graph is closed"):
        graph.launch()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_products(stream: Stream, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((4, 4)).astype(dtype) for _ in range(2))
    left, right, out = (DeviceTensor.from_numpy(each, stream=stream) for each in (a, b, np.zeros_like(a)))
    matmul(left, right, out, stream=stream)
    with Graph(stream, lambda: matmul(left, right, out, accumulate=True, stream=stream)) as graph:
        for _ in range(3):
            graph.launch()
        left.copy_from(2 * a, stream=stream)  # what a launch reads is what is there then
        graph.launch()
        matmul(left, right, out, accumulate=True, stream=stream)
    np.testing.assert_allclose(out.numpy().astype(np.float64), 8 * (a.astype(float) @ b), rtol=0.01, atol=0.02)


@simulated
def test_a_handle_that_goes_first(stream: Stream) -> None:
    a = DeviceTensor.from_numpy(np.eye(4, dtype=np.float32), stream=stream)
    out = DeviceTensor.from_numpy(np.zeros((4, 4), np.float32), stream=stream)
    matmul(a, a, out, stream=stream)
    graph = Graph(stream, lambda: matmul(a, a, out, accumulate=True, stream=stream))
    graph.launch()
    stream.sync()
    Blas._per_thread.__dict__["handles"].pop(stream.device.index).close()
    graph.close()
    assert out.numpy().trace() == 8


def test_what_cannot_be_captured(stream: Stream, device: Device) -> None:
    x = ramp(stream)
    with pytest.raises(ArgumentError, match="stream is the null stream"):
        Graph(device.default_stream, lambda: None)
    with pytest.raises(ArgumentError, match="stream is int; it takes a Stream"):
        Graph(3, lambda: None)  # type: ignore[arg-type]
    for work in (stream.sync, lambda: x.numpy(stream=stream)):
        with pytest.raises(HipError, match="StreamCapture"):
            Graph(stream, work)
    scale.launch(x, 3.0, stream=stream)  # the stream works
    assert x.numpy()[1] == 3


@simulated
def test_memory_that_was_freed(stream: Stream) -> None:
    x, y = ramp(stream), ramp(stream)
    warm(x, stream)

    def work() -> None:
        scale.launch(x, 2.0, stream=stream)
        add.launch(x, y, stream=stream)

    graph = Graph(stream, work)
    graph.launch()
    assert not graph.stale
    y.buffer.close()
    assert graph.stale
    with pytest.raises(ClosedError, match="memory that the graph uses was freed"):
        graph.launch()
    assert x.numpy().tolist() == [3 * i for i in range(8)]
    graph.close()


def test_what_decoding_keeps_for_its_next_call(stream: Stream) -> None:
    """Captured without a workspace: when that memory is gone, the graph is refused."""
    q, k = (DeviceTensor.from_numpy(np.ones((1, n, 1, 16), np.float16), stream=stream) for n in (1, 300))
    out = DeviceTensor.empty(q.shape, np.float16, stream=stream)

    def work() -> None:
        attention_decode(q, k, k, out=out, num_splits=2, stream=stream)

    work()
    graph = Graph(stream, work)
    graph.launch()
    assert (out.numpy() == 1).all()
    free_scratch()
    with pytest.raises(ClosedError, match="workspace="):
        graph.launch()
    graph.close()


def test_the_collector_is_off_until_the_last_of_several_captures_ends(device: Device) -> None:
    begun, other_ended = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert other_ended.wait(20)

    with Stream(device) as one, Stream(device) as other:
        captures = threading.Thread(target=lambda: Graph(one, wait).close())
        captures.start()
        try:
            assert begun.wait(20)
            Graph(other, lambda: None).close()
            assert not gc.isenabled()
        finally:
            other_ended.set()
            captures.join()
        assert gc.isenabled()


def test_allocations_cannot_be_captured(stream: Stream) -> None:
    """Not even where the runtime could."""
    with bindings.record() as calls, pytest.raises(HipError, match="hipErrorStreamCaptureUnsupported"):
        Graph(stream, lambda: DeviceTensor.empty((4,), stream=stream))
    assert not [name for name, _ in calls if "Malloc" in name]


def test_an_error_of_the_work_ends_the_capture(stream: Stream) -> None:
    x = ramp(stream)
    warm(x, stream)

    def work() -> None:
        scale.launch(x, 2.0, stream=stream)
        raise KeyError("work")

    with pytest.raises(KeyError):
        Graph(stream, work)
    stream.sync()
    assert x.numpy().tolist() == list(range(8))


@simulated
@pytest.mark.parametrize("call", ["hipStreamBeginCapture:1", "hipStreamEndCapture:1", "hipGraphInstantiateWithFlags:1"])
def test_failures(stream: Stream, fail: Any, call: str) -> None:
    x = ramp(stream)
    warm(x, stream)
    with fail(call), pytest.raises(HipError, match=call.partition(":")[0]):
        Graph(stream, lambda: scale.launch(x, 2.0, stream=stream))
    if call.startswith("hipStreamEnd"):  # it was not ended
        bindings.hip.hipStreamEndCapture(stream.native)
    scale.launch(x, 3.0, stream=stream)
    assert x.numpy()[1] == 3


def test_sync_each(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setenv("HIPATTN_SYNC", "1")
    with Stream(device) as stream:
        x = DeviceTensor.from_numpy(np.ones(4, np.float32), stream=stream)
        scale.launch(x, 1.0, stream=stream)
        with Graph(stream, lambda: scale.launch(x, 2.0, stream=stream)) as graph:
            assert stream.sync_each
            graph.launch()
            assert stream.done


def test_a_graph_knows_all_memory_that_attention_uses(stream: Stream) -> None:
    arrays = np.random.default_rng(0).standard_normal((4, 1, 5, 2, 16)).astype(np.float32)
    q, k, v, out = (DeviceTensor.from_numpy(array, stream=stream) for array in arrays)
    attention(q, k, v, out=out, stream=stream)
    with Graph(stream, lambda: attention(q, k, v, out=out, stream=stream)) as graph:
        assert graph._buffers == {tensor.buffer for tensor in (q, k, v, out)}


def test_what_cannot_be_captured_is_not_computed_with_numpy(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    q = DeviceTensor.from_numpy(np.ones((1, 4, 1, 8), np.float32), stream=stream)
    attention(q, q, q, stream=stream)
    with pytest.raises(HipError, match="what a graph captures cannot allocate"):
        Graph(stream, lambda: attention(q, q, q, stream=stream))
    with Stream(stream.device) as other:
        out, elsewhere = (DeviceTensor.from_numpy(q.numpy(), stream=on) for on in (stream, other))
        with pytest.raises(HipError, match="hipErrorStreamCapture"):
            Graph(stream, lambda: attention(elsewhere, q, q, out=out, stream=stream))
    assert not caplog.records
    assert (attention(q, q, q, stream=stream).numpy() == 1).all()
