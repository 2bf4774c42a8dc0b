"""Work that is replayed does what the work does."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from hipattn import ClosedError, Device, DeviceTensor, HipError, Stream
from hipattn.kernels import scale
from hipattn.matmul import matmul
from hipattn.platforms.cpu import control
from hipattn.runtime import bindings
from hipattn.runtime.replay import KEPT, Replay

simulated = pytest.mark.skipif(not bindings.platform().simulated, reason="needs the simulator")


class Doubled:
    """A tensor that its work doubles, and how often it was called."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.calls = stream, 0
        self.x = DeviceTensor.from_numpy(np.ones(4, np.float32), stream=stream)

    def work(self) -> None:
        self.calls += 1
        scale.launch(self.x, 2.0, stream=self.stream)

    @property
    def times(self) -> int:
        return int(np.log2(self.x.numpy(stream=self.stream)[0]))


def test_work_is_called_then_captured_then_replayed(stream: Stream) -> None:
    doubled, replay = Doubled(stream), Replay(stream)
    called = [replay.run("key", doubled.work) for _ in range(5)]
    assert called == [True, True, False, False, False]
    assert (doubled.calls, doubled.times) == (2, 5)
    replay.close()
    assert replay.run("key", doubled.work)
    assert (doubled.calls, doubled.times) == (3, 6)


def test_each_key_has_its_own_and_the_oldest_goes(stream: Stream) -> None:
    doubled, replay = Doubled(stream), Replay(stream)
    for key in (*range(KEPT), *range(KEPT)):
        replay.run(key, doubled.work)
    with bindings.record() as calls:
        assert not replay.run(0, doubled.work)
        assert replay.run("new", doubled.work)  # in the place of 1
        assert [name for name, _ in calls].count("hipGraphExecDestroy") == 1
        assert not replay.run(0, doubled.work)
        assert replay.run(1, doubled.work)
    assert doubled.times == 2 * KEPT + 4
    replay.close()


def test_the_null_stream_is_called_each_time(device: Device) -> None:
    doubled = Doubled(device.default_stream)
    replay = Replay(device.default_stream)
    assert [replay.run("key", doubled.work) for _ in range(3)] == [True] * 3
    assert (doubled.calls, doubled.times) == (3, 3)


@simulated
def test_what_cannot_be_captured_is_called_each_time(stream: Stream) -> None:
    doubled, replay = Doubled(stream), Replay(stream)

    def work() -> None:
        doubled.work()
        DeviceTensor.empty((4,), stream=stream)

    assert [replay.run("key", work) for _ in range(4)] == [True] * 4
    assert doubled.times == 4
    assert doubled.calls == 5  # one of them in vain


@simulated
def test_a_capture_that_was_disturbed_is_tried_again(stream: Stream) -> None:
    doubled, replay = Doubled(stream), Replay(stream)
    disturbed = iter((False, True, False, False))

    def work() -> None:
        doubled.work()
        if next(disturbed):
            raise bindings.failure(bindings.hip.hipError_t.hipErrorStreamCaptureInvalidated, "hipLaunch")

    assert [replay.run("key", work) for _ in range(4)] == [True, True, True, False]
    assert doubled.times == 4


def test_memory_that_was_freed_is_not_replayed(stream: Stream) -> None:
    doubled, replay = Doubled(stream), Replay(stream)
    for _ in range(3):
        replay.run("key", doubled.work)
    assert doubled.times == 3
    doubled.x.buffer.close()
    with pytest.raises(ClosedError, match="closed"):
        replay.run("key", doubled.work)
    doubled.x = DeviceTensor.from_numpy(np.ones(4, np.float32), stream=stream)
    assert [replay.run("key", doubled.work) for _ in range(3)] == [True, True, False]
    assert doubled.times == 3
    replay.close()


@simulated
@pytest.mark.parametrize("call", ["hipGraphInstantiateWithFlags:1", "hipModuleLaunchKernel:1", "hipGraphLaunch:1"])
def test_failures(stream: Stream, fail: Any, call: str) -> None:
    doubled, replay = Doubled(stream), Replay(stream)
    replay.run("key", doubled.work)
    with fail(call), pytest.raises(HipError, match=call.partition(":")[0]):
        replay.run("key", doubled.work)
    for _ in range(3):
        replay.run("key", doubled.work)
    assert doubled.times == 4
    replay.close()


def test_products_wait_for_those_of_other_streams(stream: Stream, device: Device) -> None:
    """They share a handle, and its memory."""
    a = DeviceTensor.from_numpy(np.eye(4, dtype=np.float32), stream=stream)
    out = DeviceTensor.from_numpy(np.zeros((4, 4), np.float32), stream=stream)
    replay = Replay(stream)

    def work() -> None:
        matmul(a, a, out, accumulate=True, stream=stream)

    for _ in range(3):
        replay.run("key", work)
    with Stream(device) as other:
        b = DeviceTensor.from_numpy(np.eye(4, dtype=np.float32), stream=other)
        matmul(b, b, DeviceTensor.empty((4, 4), stream=other), stream=other)
        with bindings.record() as calls:
            assert not replay.run("key", work)
        names = [name for name, _ in calls]
        assert names.index("hipStreamWaitEvent") < names.index("hipGraphLaunch")
    assert out.numpy(stream=stream).trace() == 16
    replay.close()


@simulated
def test_products_of_a_graph_that_has_not_begun_come_first(stream: Stream, device: Device) -> None:
    """The simulator knows which was launched first, though the other stream's product is queued before it begins."""
    a = DeviceTensor.from_numpy(np.eye(4, dtype=np.float32), stream=stream)
    out, replay = DeviceTensor.empty((4, 4), stream=stream), Replay(stream)
    with Stream(device) as other, control.delayed_streams(3000):
        for _ in range(8):
            replay.run("key", lambda: matmul(a, a, out, stream=stream))
            matmul(a, a, DeviceTensor.empty((4, 4), stream=other), stream=other)
    assert out.numpy(stream=stream).trace() == 4
    replay.close()


def test_another_thread_has_another_handle(stream: Stream) -> None:
    doubled, replay = Doubled(stream), Replay(stream)
    for _ in range(3):
        replay.run("key", doubled.work)
    called = []
    thread = threading.Thread(target=lambda: called.append(replay.run("key", doubled.work)))
    thread.start()
    thread.join()
    assert called == [True]
    assert doubled.times == 4
    replay.close()
