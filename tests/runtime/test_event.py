from __future__ import annotations

import gc
import time

import pytest

from hipattn import ClosedError, Device, Event, HipError, Stream
from hipattn.runtime import bindings
from tests.helpers.gate import held


def test_an_event_that_was_never_recorded_is_done(device: Device) -> None:
    with Event(device) as event:
        assert event.done
        event.sync()


def test_an_event_is_done_with_the_work_before_it(stream: Stream) -> None:
    with held(stream) as gate:
        event = stream.record()
        assert not event.done
        gate.open()
        event.sync()
        assert event.done


def test_time_between_events(stream: Stream) -> None:
    with held(stream) as gate:
        pass
    start = stream.record()
    with held(stream) as gate:
        time.sleep(0.02)
        end = stream.record()
        gate.open()
    assert 15 < end - start < 10_000
    assert start - start == 0


def test_no_time_without_timing(stream: Stream) -> None:
    with Event(stream.device, timing=False) as start, Event(stream.device, timing=False) as end:
        stream.record(start)
        stream.record(end)
        stream.sync()
        with pytest.raises(HipError, match="hipEventElapsedTime"):
            end - start


def test_only_events_have_a_time_between(device: Device) -> None:
    with Event(device) as event, pytest.raises(TypeError):
        event - 3  # type: ignore[operator]


def test_closing_twice_is_once(device: Device) -> None:
    event = Event(device)
    with bindings.record() as calls:
        event.close()
        event.close()
        del event
    assert [name for name, _ in calls].count("hipEventDestroy") == 1


def test_a_closed_event_is_refused(stream: Stream) -> None:
    event = Event(stream.device)
    event.close()
    for use in (event.sync, lambda: event.done, lambda: stream.wait(event), lambda: stream.record(event)):
        with pytest.raises(ClosedError, match="the event is closed"):
            use()


def test_a_collected_event_is_destroyed_once(device: Device) -> None:
    gc.collect()
    event = Event(device)
    with bindings.record() as calls:
        del event
        gc.collect()
    assert [name for name, _ in calls].count("hipEventDestroy") == 1


def test_an_event_may_go_while_a_stream_waits_for_it(device: Device) -> None:
    with Stream(device) as a, Stream(device) as b, held(a) as gate:
        with a.record() as event:
            b.wait(event)
        assert not b.done
        gate.open()
        b.sync()
