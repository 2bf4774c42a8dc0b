from __future__ import annotations

import gc

import numpy as np
import pytest

from hipattn import ArgumentError, ClosedError, ConfigError, Device, DeviceTensor, Event, Stream
from hipattn.runtime import bindings
from tests.helpers.gate import held


def names(calls: list[tuple[str, tuple[object, ...]]]) -> list[str]:
    return [name for name, _ in calls]


def test_a_stream_runs_behind_the_host(stream: Stream) -> None:
    assert stream.done
    with held(stream) as gate:
        assert not stream.done
        gate.open()
        stream.sync()
        assert stream.done


def test_streams_do_not_wait_for_each_other_by_themselves(device: Device) -> None:
    with Stream(device) as a, Stream(device) as b, held(a):
        event = b.record()
        b.sync()
        assert event.done
        assert b.done
        assert not a.done


def test_wait_for_a_stream(device: Device) -> None:
    with Stream(device) as a, Stream(device) as b, held(a) as gate:
        b.wait(a)
        event = b.record()
        assert not event.done
        gate.open()
        event.sync()
        assert a.done


def test_wait_for_an_event_is_for_what_was_recorded(device: Device) -> None:
    with Stream(device) as a, Stream(device) as b:
        event = a.record()
        with held(a):
            b.wait(event)
            b.sync()
            assert not a.done


def test_order_between_streams_makes_data_visible(device: Device) -> None:
    array = np.arange(1000, dtype=np.float32)
    with Stream(device) as a, Stream(device) as b:
        tensor = DeviceTensor.from_numpy(np.zeros_like(array), stream=a)
        source = DeviceTensor.from_numpy(array, stream=a)
        kind = bindings.hip.hipMemcpyKind.hipMemcpyDeviceToDevice
        with held(a) as gate:
            bindings.check(
                bindings.hip.hipMemcpyAsync(tensor.pointer, source.pointer, tensor.nbytes, kind, a.native),
                "hipMemcpyAsync",
            )
            b.wait(a)
            gate.open()
            np.testing.assert_array_equal(tensor.numpy(stream=b), array)


@pytest.mark.parametrize("other", [None, 3, "stream"])
def test_only_events_and_streams_can_be_waited_for(stream: Stream, other: object) -> None:
    with pytest.raises(ArgumentError, match=f"other is {type(other).__name__}; it takes an Event or a Stream"):
        stream.wait(other)  # type: ignore[arg-type]


def test_record_into_an_event_of_one_s_own(stream: Stream) -> None:
    with Event(stream.device) as event:
        assert stream.record(event) is event


def test_closing_waits_and_twice_is_once(device: Device) -> None:
    stream = Stream(device)
    with bindings.record() as calls:
        stream.close()
        stream.close()
    assert names(calls).count("hipStreamDestroy") == 1
    assert names(calls).index("hipStreamSynchronize") < names(calls).index("hipStreamDestroy")
    assert repr(stream) == "<Stream closed>"


def test_a_closed_stream_is_refused(device: Device) -> None:
    stream = Stream(device)
    stream.close()
    with pytest.raises(ClosedError, match="the stream is closed"):
        stream.sync()
    with pytest.raises(ClosedError):
        DeviceTensor.empty((2,), stream=stream)


def test_a_collected_stream_is_destroyed_once(device: Device) -> None:
    gc.collect()
    stream = Stream(device)
    with bindings.record() as calls:
        del stream
        gc.collect()
    assert names(calls).count("hipStreamDestroy") == 1


def test_a_stream_of_another_library(device: Device) -> None:
    with Stream(device) as owner:
        borrowed = Stream.from_handle(owner.handle, device)
        assert borrowed.handle == owner.handle
        assert borrowed.__cuda_stream__() == (0, owner.handle)
        with held(owner) as gate:
            assert not borrowed.done
            gate.open()
            borrowed.sync()
        with bindings.record() as calls:
            borrowed.close()
        assert "hipStreamDestroy" not in names(calls)
        owner.sync()


def test_the_null_stream(device: Device) -> None:
    stream = device.default_stream
    assert stream is device.default_stream
    assert (stream.handle, stream.native, stream.__cuda_stream__()) == (0, None, (0, 0))
    stream.sync()
    assert stream.done


def test_sync_each_is_read_from_the_environment(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stream(device) as stream:
        assert not stream.sync_each
    monkeypatch.setenv("HIPATTN_SYNC", "1")
    with Stream(device) as stream:
        assert stream.sync_each
    monkeypatch.setenv("HIPATTN_SYNC", "maybe")
    with (
        bindings.record() as calls,
        pytest.raises(ConfigError, match="HIPATTN_SYNC is 'maybe'; accepted: 0 or 1"),
    ):
        Stream(device)
    assert "hipStreamCreateWithFlags" not in names(calls)


def test_a_handle_of_a_stream_is_closed_with_it(device: Device) -> None:
    with Stream(device) as stream:
        handle = Stream.from_handle(stream.handle, device)
        handle.sync()
    assert handle.closed
    with pytest.raises(ClosedError, match="the stream is closed"):
        handle.sync()
