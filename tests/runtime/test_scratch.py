"""Scratch memory: one piece a stream, kept, enlarged, and let go of."""

from __future__ import annotations

import pytest

from hipattn import Device, HipError, Stream
from hipattn.runtime.buffer import live
from hipattn.runtime.scratch import STREAMS, Scratch


def test_it_is_kept_and_enlarged(stream: Stream) -> None:
    scratch = Scratch()
    first = scratch.get(100, stream)
    assert scratch.get(100, stream) is scratch.get(1, stream) is first
    larger = scratch.get(101, stream)
    assert first.closed
    assert larger.nbytes == 200  # so that what grows by little is not enlarged often
    assert scratch.get(1000, stream).nbytes == 1000
    scratch.close()
    assert larger.closed
    assert scratch.get(10, stream).nbytes == 10
    scratch.close()


def test_each_stream_has_its_own_up_to_a_number(device: Device) -> None:
    before = live()[0]
    scratch = Scratch()
    streams = [Stream(device) for _ in range(STREAMS + 3)]
    buffers = [scratch.get(8, stream) for stream in streams]
    assert len({id(buffer) for buffer in buffers}) == len(streams)
    assert [buffer.closed for buffer in buffers] == [True] * 3 + [False] * STREAMS
    streams[-1].close()
    scratch.get(8, streams[-2])
    assert buffers[-1].closed  # its stream is
    scratch.close()
    for stream in streams:
        stream.close()
    assert live()[0] == before


def test_a_handle_that_comes_back(device: Device) -> None:
    scratch = Scratch()
    for _ in range(5):
        with Stream(device) as stream:
            for handle in list(scratch._held):  # as drivers do, which give a closed stream's handle out again
                scratch._held[stream.handle] = scratch._held.pop(handle)
            assert scratch.get(100, stream).nbytes == 100
            assert len(scratch._held) == 1
    scratch.close()


def test_no_memory(stream: Stream) -> None:
    scratch = Scratch()
    scratch.get(100, stream)
    with pytest.raises(HipError, match="OutOfMemory"):
        scratch.get(1 << 50, stream)
    assert scratch.get(100, stream).nbytes == 100
    scratch.close()
