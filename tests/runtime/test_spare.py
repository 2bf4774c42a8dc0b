"""Memory that a stream keeps for its next buffers. The simulator's streams keep none, unless they are told to."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from hipattn import ClosedError, Device, DeviceBuffer, DeviceTensor, Graph, HipError, Stream
from hipattn.kernels import scale
from hipattn.runtime import bindings, spare
from hipattn.runtime.buffer import live
from hipattn.runtime.spare import SpareMemory
from tests.helpers.gate import held


@pytest.fixture
def keeping(device: Device) -> Iterator[Stream]:
    """Return a stream that keeps what is freed."""
    with Stream(device) as stream:
        if device.simulated:
            stream.spare = device.spare[stream.handle] = SpareMemory()
        yield stream


def allocations(calls: list[tuple[str, tuple[object, ...]]]) -> tuple[int, int]:
    """Return how many pieces were asked of the driver, and given back."""
    names = [name for name, _ in calls]
    return names.count("hipMallocAsync"), names.count("hipFreeAsync") + names.count("hipFree")


def test_the_next_buffer_of_its_size_takes_a_piece(keeping: Stream) -> None:
    before = live()
    with DeviceBuffer(1000, keeping) as first:
        address = first.pointer
    with bindings.record() as calls:
        other, second = DeviceBuffer(999, keeping), DeviceBuffer(1000, keeping)
        assert second.pointer == address
        assert other.pointer != address
        with DeviceBuffer(1000, keeping) as third:
            assert third.pointer != address
    assert allocations(calls) == (2, 0)
    with pytest.raises(ClosedError):
        first.pointer  # noqa: B018
    other.close()
    second.close()
    assert live() == before


def test_a_collected_buffer_leaves_its_piece(keeping: Stream) -> None:
    buffer = DeviceBuffer(1000, keeping)
    address = buffer.pointer
    with bindings.record() as calls:
        del buffer
        gc.collect()
        with DeviceBuffer(1000, keeping) as again:
            assert again.pointer == address
    assert allocations(calls) == (0, 0)


def test_what_used_a_piece_comes_first(keeping: Stream) -> None:
    """The work of a buffer that is gone does not overwrite the next one's."""
    with held(keeping):
        first = DeviceTensor.empty((256,), np.float32, stream=keeping)
        address = first.pointer
        first.fill(1.0, stream=keeping)
        del first
        second = DeviceTensor.empty((256,), np.float32, stream=keeping)
        assert second.pointer == address
        second.fill(2.0, stream=keeping)
        scale.launch(second, 3.0, stream=keeping)
    assert (second.numpy() == 6.0).all()


def test_memory_that_other_streams_use_goes_to_the_driver(keeping: Stream) -> None:
    with Stream(keeping.device) as other, DeviceBuffer(1000, keeping) as buffer:
        buffer.used_on(other)
        with bindings.record() as calls:
            buffer.close()
    assert allocations(calls) == (0, 1)


def test_large_pieces_go_to_the_driver(keeping: Stream) -> None:
    buffer = DeviceBuffer(spare.LARGEST + 1, keeping)
    with bindings.record() as calls:
        buffer.close()
    assert allocations(calls) == (0, 1)


def test_sizes_that_nobody_asks_for_make_room(keeping: Stream) -> None:
    buffers = [DeviceBuffer(nbytes, keeping) for nbytes in range(1, spare.MOST + 3)]
    with bindings.record() as calls:
        for buffer in buffers:
            buffer.close()
    assert allocations(calls) == (0, 2)  # the last two find no room
    with bindings.record() as calls:
        DeviceBuffer(1000, keeping).close()  # the oldest goes
        DeviceBuffer(1000, keeping).close()
        DeviceBuffer(2, keeping).close()
        DeviceBuffer(1, keeping).close()
    assert allocations(calls) == (2, 2)


def test_a_closed_stream_keeps_nothing(device: Device) -> None:
    with Stream(device) as stream:
        if device.simulated:
            stream.spare = device.spare[stream.handle] = SpareMemory()
        handle, left = stream.handle, DeviceBuffer(1000, stream)
        DeviceBuffer(2000, stream).close()
        with bindings.record() as calls:
            stream.close()
        assert allocations(calls) == (0, 1)
    assert handle not in device.spare
    with bindings.record() as calls:
        left.close()
    assert allocations(calls) == (0, 1)


def test_what_goes_while_its_stream_is_closed_is_not_kept(keeping: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may find a buffer while the stream waits for its work."""
    left, sync = DeviceBuffer(1000, keeping), Stream.sync

    def collecting(stream: Stream) -> None:
        left.close()
        sync(stream)

    monkeypatch.setattr(Stream, "sync", collecting)
    with bindings.record() as calls:
        keeping.close()
    assert allocations(calls) == (0, 1)


def test_trim_frees_what_streams_keep(keeping: Stream) -> None:
    DeviceBuffer(1000, keeping).close()
    with bindings.record() as calls:
        keeping.device.trim()
    assert allocations(calls)[1] >= 1
    assert keeping.spare is not None
    assert keeping.spare.take(1000) == 0


def test_the_same_stream_by_its_handle_keeps_the_same(keeping: Stream) -> None:
    same = Stream.from_handle(keeping.handle, keeping.device)
    assert same.spare is keeping.spare
    unknown = Stream.from_handle(keeping.handle + 64, keeping.device)
    assert unknown.spare is None


def test_a_capture_allocates_nothing(keeping: Stream) -> None:
    DeviceBuffer(1000, keeping).close()
    with pytest.raises(HipError, match="hipErrorStreamCaptureUnsupported"):
        Graph(keeping, lambda: DeviceBuffer(1000, keeping))
    with DeviceBuffer(1000, keeping):
        pass


def test_who_finds_it_busy_goes_to_the_driver() -> None:
    memory = SpareMemory()
    assert memory.put(8, 1)
    with memory._lock:  # as a destructor finds it that runs amid another use
        assert not memory.put(8, 2)
        assert memory.take(8) == 0
    assert memory.take(8) == 1
    assert memory.give_up() == []
