"""A GPU: what it is, and which one is current."""

from __future__ import annotations

import ctypes
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hipattn.arguments import integer
from hipattn.errors import ArgumentError, PlatformError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.spare import SpareMemory

if TYPE_CHECKING:
    from hipattn.runtime.stream import Stream

__all__ = ["Device"]

_devices: dict[int, Device] = {}
_lock = threading.Lock()


class Device:
    """One GPU of this machine (or one simulated GPU).

    ``Device(index)`` returns the same object each time.

    Parameters
    ----------
    index
        0 .. `Device.count()` - 1.

    Attributes
    ----------
    index : int
    name : str
        As the driver reports it. A simulated device says so here.
    arch : str
        The architecture that kernels are compiled for: "gfx942".
    wave_size : int
        Lanes that execute together: 64 (gfx9) or 32.
    lds_bytes : int
        Local memory (LDS) that one workgroup can have.
    compute_units : int
    total_memory : int
        In bytes.
    spare : dict of int to SpareMemory
        What streams keep, by their handles.

    Raises
    ------
    ArgumentError
        There is no such device.
    PlatformError
        No platform can be used on this machine, or the one that is has no device.
    """

    index: int
    name: str
    arch: str
    wave_size: int
    lds_bytes: int
    compute_units: int
    total_memory: int
    spare: dict[int, SpareMemory]
    _pool: Any

    def __new__(cls, index: int = 0) -> Device:  # noqa: D102
        device = _devices.get(index) if type(index) is int else None
        if device is None:
            index = integer("index", index, -(2**31))
            with _lock:
                device = _devices.get(index) or cls._open(index)
                _devices[index] = device
        return device

    @classmethod
    def _open(cls, index: int) -> Device:
        count = cls.count()
        if not count:
            status = bindings.hip.hipGetDeviceCount()[0]
            said = bindings.failure(status, "hipGetDeviceCount") if status else "hipGetDeviceCount finds none"
            raise PlatformError(
                f"there is no GPU: the {bindings.platform().name} platform's libraries are here, and {said}. Compiling "
                "works without (hipattn.compile); to run, set HIPATTN_PLATFORM=cpu, which simulates a GPU"
            )
        if not 0 <= index < count:
            raise ArgumentError(f"index is {index}; this machine has devices 0 to {count - 1}")
        properties = check(bindings.hip.hipGetDeviceProperties(index), "hipGetDeviceProperties", device=index)
        self = super().__new__(cls)
        self.index = index
        self.name = _text(properties.name)
        self.arch = _text(properties.gcnArchName).partition(":")[0]
        self.wave_size = int(properties.warpSize)
        self.lds_bytes = int(properties.sharedMemPerBlock)
        self.compute_units = int(properties.multiProcessorCount)
        self.total_memory = int(properties.totalGlobalMem)
        self._pool = None
        self.spare = {}
        if properties.memoryPoolsSupported:
            # By default the pool gives all back at each synchronisation; keep what was freed.
            failed, pool = bindings.hip.hipDeviceGetDefaultMemPool(index)
            threshold = bindings.hip.hipMemPoolAttr.hipMemPoolAttrReleaseThreshold
            if not failed and not bindings.hip.hipMemPoolSetAttribute(pool, threshold, ctypes.c_uint64(2**64 - 1))[0]:
                self._pool = pool
                self.keep_spare(0)
        return self

    @property
    def memory_pools(self) -> bool:
        """Whether allocation is ordered by streams."""
        return self._pool is not None

    def keep_spare(self, handle: int) -> None:
        """Keep memory that buffers of a stream have freed for others of it: for the stream of that handle."""
        if self.memory_pools and not self.simulated:  # there, memory is poison again each time
            self.spare[handle] = SpareMemory()

    def trim(self) -> None:
        """Give device memory that hipattn has freed, but keeps for later, back to the system."""
        if self._pool is not None:
            self.sync()
            for spare in list(self.spare.values()):
                for pointer in spare.give_up():
                    check(bindings.hip.hipFree(pointer), "hipFree")
            check(bindings.hip.hipMemPoolTrimTo(self._pool, 0), "hipMemPoolTrimTo")

    @classmethod
    def of(cls, device: Device | int | None) -> Device:
        """Return a device from what names it: itself, its index, or None for device 0.

        Raises
        ------
        ArgumentError
            It is something else, or there is no such device.
        """
        return device if isinstance(device, Device) else cls(integer("device", 0 if device is None else device))

    @staticmethod
    def count() -> int:
        """Return how many devices the platform has. 0 if it has none."""
        bindings.platform()
        status, count = bindings.hip.hipGetDeviceCount()
        return 0 if status else int(count)

    def use(self) -> None:
        """Make this the calling thread's current device, as HIP's allocations and launches need it."""
        check(bindings.hip.hipSetDevice(self.index), "hipSetDevice", device=self.index)

    @cached_property
    def default_stream(self) -> Stream:
        """The stream of operations that name none: HIP's null stream, which other libraries use by default too."""
        from hipattn.runtime.stream import Stream

        return Stream.from_handle(0, self)

    def sync(self) -> None:
        """Wait until all work on this device has completed, and report what failed in it."""
        self.use()
        check(bindings.hip.hipDeviceSynchronize(), "hipDeviceSynchronize")

    def memory(self) -> tuple[int, int]:
        """Return (free, total) device memory in bytes."""
        self.use()
        free, total = check(bindings.hip.hipMemGetInfo(), "hipMemGetInfo")
        return int(free), int(total)

    @property
    def simulated(self) -> bool:
        """Whether the device is simulated on the CPU: its times mean nothing."""
        return bindings.platform().simulated

    def __repr__(self) -> str:
        return f"Device({self.index}, {self.name!r}, {self.arch})"

    def __reduce__(self) -> tuple[type[Device], tuple[int]]:
        return Device, (self.index,)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
