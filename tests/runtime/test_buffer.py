from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from hipattn import ArgumentError, ClosedError, Device, DeviceBuffer, DeviceTensor, HipError, Stream
from hipattn.runtime import bindings, spare
from hipattn.runtime.bindings import check
from hipattn.runtime.buffer import live
from tests.helpers.gate import held


@pytest.fixture(autouse=True)
def _nothing_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is freed goes to the driver."""
    monkeypatch.setattr(spare, "LARGEST", 0)


def names(calls: list[tuple[str, tuple[Any, ...]]]) -> list[str]:
    return [name for name, _ in calls]


def frees(calls: list[tuple[str, tuple[Any, ...]]]) -> int:
    return sum(name in ("hipFree", "hipFreeAsync") for name in names(calls))


def copy(to: int, source: int, nbytes: int, stream: Stream) -> None:
    kind = bindings.hip.hipMemcpyKind.hipMemcpyDefault
    check(bindings.hip.hipMemcpyAsync(to, source, nbytes, kind, stream.native), "hipMemcpyAsync")


def test_a_buffer_is_counted_while_it_lives(stream: Stream) -> None:
    buffers, nbytes = live()
    with DeviceBuffer(1000, stream) as buffer:
        assert buffer.pointer
        assert (buffer.nbytes, buffer.device, buffer.stream) == (1000, stream.device, stream)
        assert live() == (buffers + 1, nbytes + 1000)
    assert live() == (buffers, nbytes)


def test_closing_twice_is_once(stream: Stream) -> None:
    buffer = DeviceBuffer(1000, stream)
    gc.collect()
    with bindings.record() as calls:
        buffer.close()
        buffer.close()
        with buffer:
            pass
        del buffer
        gc.collect()
    assert frees(calls) == 1


def test_a_collected_buffer_is_freed_once(stream: Stream) -> None:
    gc.collect()
    buffer: Any = DeviceBuffer(1000, stream)
    buffer.itself = buffer  # collected by the collector, not by the last reference
    with bindings.record() as calls:
        del buffer
        gc.collect()
    assert frees(calls) == 1


def test_a_closed_buffer_is_refused() -> None:
    buffer = DeviceBuffer(1000)
    buffer.close()
    with pytest.raises(ClosedError, match="the buffer of 1000 bytes is closed"):
        buffer.pointer  # noqa: B018
    assert repr(buffer) == "<DeviceBuffer closed, 1000 bytes on device 0>"


def test_an_empty_buffer_owns_nothing() -> None:
    with bindings.record() as calls:
        with DeviceBuffer(0) as buffer:
            assert buffer.pointer == 0
        with pytest.raises(ClosedError):
            buffer.pointer  # noqa: B018
    assert not {"hipMalloc", "hipMallocAsync", "hipFree", "hipFreeAsync"} & set(names(calls))


@pytest.mark.parametrize("nbytes", [-1, 1.5, None, "8"])
def test_sizes_that_are_refused(nbytes: Any) -> None:
    with bindings.record() as calls, pytest.raises(ArgumentError, match=f"nbytes is {nbytes!r}"):
        DeviceBuffer(nbytes)
    gc.collect()
    assert not calls


def test_too_little_memory_says_how_little(stream: Stream) -> None:
    before = live()
    with DeviceBuffer(1000, stream), pytest.raises(HipError) as caught:
        DeviceBuffer(1 << 50, stream)
    assert caught.value.name == "hipErrorOutOfMemory"
    for part in (
        f"bytes {1 << 50}",
        f"device {stream.device.index}",
        "free ",
        "total ",
        "held 1000 bytes in 1",
    ):
        assert part in str(caught.value)
    gc.collect()
    assert live() == before


def test_a_failed_construction_leaves_nothing() -> None:
    stream = Stream()
    stream.close()
    with bindings.record() as calls, pytest.raises(ClosedError):
        DeviceBuffer(1000, stream)
    gc.collect()
    assert not calls


def test_memory_is_freed_after_work_in_another_stream(device: Device) -> None:
    array = np.arange(1 << 16, dtype=np.float32)
    with Stream(device) as a, Stream(device) as b:
        kept = DeviceTensor.from_numpy(np.zeros_like(array), stream=a)
        lost = DeviceTensor.from_numpy(array, stream=a)
        with held(b) as gate:
            copy(kept.pointer, lost.pointer, lost.nbytes, b)
            lost.buffer.used_on(b)
            lost.buffer.close()  # does not wait on the host
            assert not b.done
            assert not a.done  # the freeing waits
            gate.open()
            np.testing.assert_array_equal(kept.numpy(stream=b), array)


def test_the_order_of_freeing(device: Device) -> None:
    with Stream(device) as a, Stream(device) as b:
        buffer = DeviceBuffer(1000, a)
        buffer.used_on(a)
        buffer.used_on(b)
        buffer.used_on(Stream.from_handle(b.handle, device))  # the same stream
        with bindings.record() as calls:
            buffer.close()
        assert names(calls).count("hipStreamWaitEvent") == 1
        assert names(calls).index("hipStreamWaitEvent") < names(calls).index("hipFreeAsync")


def test_streams_that_were_closed_first(device: Device) -> None:
    a, b = Stream(device), Stream(device)
    buffers = [DeviceBuffer(1000, a), DeviceBuffer(1000, device.default_stream)]
    for buffer in buffers:
        buffer.used_on(b)
    a.close()
    b.close()
    with bindings.record() as calls:
        for buffer in buffers:
            buffer.close()
    assert frees(calls) == 2


def test_memory_of_a_stream_that_goes_with_it(device: Device) -> None:
    gc.collect()
    cycle: list[Any] = [Stream(device)]
    cycle += [DeviceBuffer(1000, cycle[0]), cycle]
    with bindings.record() as calls:
        del cycle
        gc.collect()
    assert frees(calls) == 1


def test_buffers_of_many_threads(device: Device) -> None:
    before = live()

    def work() -> None:
        with Stream(device) as stream:
            for size in range(1, 100):
                buffer: Any = DeviceBuffer(size, stream)
                buffer.itself = buffer

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert live() == before


class Owner:
    """Something that a weak reference can watch."""


def test_borrowed_memory_is_not_freed(stream: Stream) -> None:
    before = live()
    owner = Owner()
    alive = weakref.ref(owner)
    buffer = DeviceBuffer.wrap(0x1000, 64, stream=stream, keep=owner)
    del owner
    assert (buffer.pointer, buffer.nbytes, buffer.device) == (0x1000, 64, stream.device)
    assert live() == before
    assert alive() is not None
    with bindings.record() as calls:
        buffer.close()
        buffer.close()
    assert alive() is None
    assert not calls


def test_borrowed_memory_goes_back_after_our_work(device: Device) -> None:
    with Stream(device) as theirs, Stream(device) as ours:
        buffer = DeviceBuffer.wrap(0x1000, 64, stream=theirs, keep=None)
        buffer.used_on(ours)
        with held(ours) as gate:
            del buffer
            assert not theirs.done
            gate.open()


def test_borrowed_host_memory_goes_back_after_a_wait(device: Device) -> None:
    with Stream(device) as stream, bindings.record() as calls:
        buffer = DeviceBuffer.wrap(0x1000, 64, stream=stream, keep=None, sync_to_close=True)
        buffer.close()
    assert "hipDeviceSynchronize" in names(calls)


def test_a_collected_buffer_leaves_the_current_device() -> None:
    if Device.count() < 2:
        pytest.skip("needs two devices")
    buffer = DeviceBuffer(16, Device(1).default_stream)
    Device(0).use()
    del buffer
    gc.collect()
    assert bindings.hip.hipGetDevice()[1] == 0


def test_another_stream_waits_for_the_allocation_once(device: Device) -> None:
    with Stream(device) as own, Stream(device) as other, DeviceBuffer(16, own) as buffer:
        with bindings.record() as calls:
            buffer.used_on(own)
            buffer.used_on(other)
            buffer.used_on(other)
        assert names(calls).count("hipStreamWaitEvent") == 1
