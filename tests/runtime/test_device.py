from __future__ import annotations

import pickle
import threading

import pytest

from hipattn import ArgumentError, Device, DeviceBuffer
from hipattn.compiler.target import wave_size
from hipattn.runtime import bindings


def test_a_device_is_one_object(device: Device) -> None:
    assert Device(device.index) is device
    assert pickle.loads(pickle.dumps(device)) is device


def test_what_it_says_of_itself(device: Device) -> None:
    assert device.wave_size == wave_size(device.arch)
    assert device.lds_bytes >= 64 << 10
    assert device.compute_units > 0
    assert device.arch in repr(device)
    assert device.simulated == bindings.platform().simulated
    assert not device.simulated or "imulated" in device.name


@pytest.mark.parametrize("index", [-1, 99])
def test_no_such_device(index: int) -> None:
    with pytest.raises(ArgumentError, match=rf"index is {index}; this machine has devices 0 to {Device.count() - 1}"):
        Device(index)


def test_memory(device: Device) -> None:
    if device.memory_pools:  # what the pool keeps is not free, and is what it gives first
        hip = bindings.hip
        pool = bindings.check(hip.hipDeviceGetDefaultMemPool(device.index), "hipDeviceGetDefaultMemPool")
        bindings.check(hip.hipMemPoolTrimTo(pool, 0), "hipMemPoolTrimTo")
    free, total = device.memory()
    assert 0 < free <= total == device.total_memory
    stream = device.default_stream
    with DeviceBuffer(1 << 30, stream):
        stream.sync()
        assert device.memory()[0] <= free - (1 << 29)


def test_sync_is_of_the_device(device: Device) -> None:
    with bindings.record() as calls:
        device.sync()
    assert calls == [("hipSetDevice", (device.index,)), ("hipDeviceSynchronize", ())]


@pytest.mark.skipif(Device.count() < 2, reason="needs two devices")
def test_each_thread_has_its_own_current_device() -> None:
    Device(0).use()
    thread = threading.Thread(target=Device(1).use)
    thread.start()
    thread.join()
    assert bindings.check(bindings.hip.hipGetDevice(), "hipGetDevice") == 0
