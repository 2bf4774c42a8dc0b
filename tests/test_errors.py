"""Errors survive what Python does to them, and owners of device memory refuse to be copied."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import hipattn
from hipattn import CompileError, DeviceBuffer, Event, HipError, KVCache, Stream, errors
from tests.helpers.inputs import upload

ERRORS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_can_be_pickled(kind: type[Exception]) -> None:
    arguments: dict[type[Exception], tuple[object, ...]] = {
        HipError: (2, "hipErrorOutOfMemory", "hipMalloc", "no memory"),
        CompileError: ("x.hip", "x.hip:1:1: error", ("-O3",), "nonsense"),
    }
    error = kind(*arguments.get(kind, ("what was wrong",)))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_owners_cannot_be_copied(stream: Stream, how: object) -> None:
    with KVCache(1, 1, 4, 1, 8, dtype=np.float32, stream=stream) as cache, Event(stream.device) as event:
        for owner in (stream, event, cache._keys.buffer, hipattn.Blas.of(stream.device)):
            with pytest.raises(TypeError, match=f"a {type(owner).__name__} owns something of the device"):
                how(owner)  # type: ignore[operator]


def test_a_deep_copy_of_a_cache_or_tensor_is_refused(stream: Stream) -> None:
    (tensor,) = upload(stream, np.zeros(4, np.float32))
    with KVCache(1, 1, 4, 1, 8, dtype=np.float32, stream=stream) as cache:
        for holder in (tensor, cache):
            with pytest.raises(TypeError, match="a DeviceBuffer owns"):
                copy.deepcopy(holder)


def test_a_closed_buffer_is_not_closed_again_by_its_collector(stream: Stream) -> None:
    buffer = DeviceBuffer(64, stream)
    buffer.close()
    buffer.close()
    assert buffer.closed
