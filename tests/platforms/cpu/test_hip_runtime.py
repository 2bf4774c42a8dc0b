"""The cpu platform's libamdhip64, through hip-python."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipattn.errors import HipError
from hipattn.platforms.cpu import control
from tests.platforms.cpu.simulator import Simulator


class Arguments(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("n", ctypes.c_int))


class Kernels:
    """The test kernels, loaded into the current device."""

    def __init__(self, sim: Simulator, image: bytes) -> None:
        self.sim = sim
        self.module = sim.hipModuleLoadData(image)

    def __call__(
        self,
        name: str,
        x: Any = 0,
        n: int = 0,
        *,
        grid: int = 1,
        block: int = 1,
        lds: int = 0,
        stream: Any = None,
    ) -> None:
        """Launch with the whole argument block and its size, as hipattn does."""
        arguments = Arguments(int(x), n)
        size = ctypes.c_size_t(12)
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(arguments), 2, ctypes.addressof(size), 3)
        self.sim.hipModuleLaunchKernel(self.function(name), grid, 1, 1, block, 1, 1, lds, stream, None, extra)

    def function(self, name: str) -> Any:
        return self.sim.hipModuleGetFunction(self.module, name.encode())


@pytest.fixture
def kernels(sim: Simulator, compile_kernels: Callable[[str], Path]) -> Iterator[Kernels]:
    loaded = Kernels(sim, compile_kernels("gfx942").read_bytes())
    yield loaded
    sim.hip.hipModuleUnload(loaded.module)


@pytest.fixture
def stream(sim: Simulator) -> Iterator[Any]:
    made = sim.hipStreamCreateWithFlags(1)
    yield made
    sim.hip.hipStreamDestroy(made)


class Floats:
    """float32 numbers in device memory, freed when the block ends."""

    def __init__(self, sim: Simulator, count: int, value: float | None = None) -> None:
        self.sim, self.count = sim, count
        self.pointer = sim.hipMalloc(4 * count)
        if value is not None:
            self.write(np.full(count, value, np.float32))

    def write(self, values: np.ndarray) -> None:
        self.sim.hipMemcpy(self.pointer, values, values.nbytes, self.sim.kind.hipMemcpyHostToDevice)

    def read(self) -> np.ndarray:
        out = np.empty(self.count, np.float32)
        self.sim.hipMemcpy(out, self.pointer, out.nbytes, self.sim.kind.hipMemcpyDeviceToHost)
        return out

    def __int__(self) -> int:
        return int(self.pointer)

    def __enter__(self) -> Floats:
        return self

    def __exit__(self, *_: object) -> None:
        self.sim.hip.hipFree(self.pointer)


def fault(sim: Simulator, stream: Any = None) -> tuple[str, str]:
    """Return the status and the message that synchronising a stream after broken work ends with."""
    status = sim.status("hipStreamSynchronize", stream)
    return status, sim.message(status)


# Devices


@pytest.mark.parametrize(
    ("arch", "wave", "lds", "full"),
    [
        ("gfx90a", 64, 64, "gfx90a:sramecc+:xnack-"),
        ("gfx942", 64, 64, "gfx942:sramecc+:xnack-"),
        ("gfx950", 64, 160, "gfx950:sramecc+:xnack-"),
        ("gfx1100", 32, 64, "gfx1100"),
        ("gfx1201", 32, 64, "gfx1201"),
    ],
)
def test_device_describes_itself(run_script: Callable[..., str], arch: str, wave: int, lds: int, full: str) -> None:
    printed = run_script(
        "p = sim.hipGetDeviceProperties(0)\n"
        "print(p.name, p.gcnArchName, p.warpSize, p.sharedMemPerBlock, p.totalGlobalMem)\n"
        "print(p.maxThreadsPerBlock)",
        arch,
    )
    assert printed.strip() == f"Simulated {arch} (CPU) {full} {wave} {lds << 10} {8 << 30}\n1024"


def test_unknown_arch_says_which_there_are(run_script: Callable[..., str]) -> None:
    printed = run_script(
        "library = sim.library\n"
        "os.environ['HIPATTN_CPU_ARCH'] = 'gfx000'\n"
        "library.hipGetErrorString.restype = ctypes.c_char_p\n"
        "count = ctypes.c_int()\n"
        "status = library.hipGetDeviceCount(ctypes.byref(count))\n"
        "print(status, count.value, library.hipGetErrorString(status).decode())",
    )
    assert printed.startswith("100 0 ")
    assert 'no simulated architecture "gfx000"' in printed
    assert "gfx90a gfx942 gfx950 gfx1100 gfx1201" in printed


def test_two_devices_are_apart(run_script: Callable[..., str]) -> None:
    printed = run_script(
        """
first = Kernels(sim, images[0])
print(sim.status("hipModuleLoadData", images[1]))
sim.hipSetDevice(1)
second = Kernels(sim, images[1])
print(sim.hipGetDevice(), sim.status("hipSetDevice", 2))
with Floats(sim, 64, 1) as x:
    second("divergent_sum", x, 8, block=32)
    print(x.read()[:2], x.read()[62:])
    try:
        first("twice", x)
    except HipError as error:
        print(error.name)
sim.hipSetDevice(0)
event = sim.hipEventCreateWithFlags(0)
sim.hipSetDevice(1)
print(sim.status("hipEventRecord", event, None))
second("twice", 4096)
print(sim.status("hipDeviceSynchronize"))
sim.hipSetDevice(0)
print(sim.status("hipDeviceSynchronize"))
""",
        "gfx942",
        "gfx1100",
    )
    assert printed.splitlines() == [
        "hipErrorNoBinaryForGpu",
        "1 hipErrorInvalidDevice",
        "[ 8. 32.] [2400.   32.]",
        "hipErrorInvalidDevice",
        "hipErrorInvalidHandle",
        "hipErrorIllegalAddress",
        "hipSuccess",
    ]


# Memory


def test_fresh_memory_is_nan(sim: Simulator) -> None:
    with Floats(sim, 1000) as x:
        assert np.isnan(x.read()).all()


def test_large_memory_is_poisoned_without_being_touched(sim: Simulator) -> None:
    start = time.perf_counter()
    with Floats(sim, 5 << 28) as x:  # 5 GiB
        assert time.perf_counter() - start < 1
        view = np.ctypeslib.as_array(ctypes.cast(int(x), ctypes.POINTER(ctypes.c_float)), (x.count,))
        assert np.isnan(view[:: x.count // 1000]).all()
        assert np.isnan(view[-1])


def test_size_zero_and_null(sim: Simulator) -> None:
    assert int(sim.hipMalloc(0) or 0) == 0
    assert sim.status("hipFree", None) == "hipSuccess"


def test_free_errors(sim: Simulator) -> None:
    pointer = sim.hipMalloc(64)
    assert sim.status("hipFree", int(pointer) + 16) == "hipErrorInvalidValue"
    sim.hipFree(pointer)
    assert sim.status("hipFree", pointer) == "hipErrorInvalidValue"


def test_out_of_memory(sim: Simulator) -> None:
    assert sim.status("hipMalloc", 9 << 30) == "hipErrorOutOfMemory"
    assert sim.status("hipGetLastError") == "hipErrorOutOfMemory"
    assert sim.status("hipGetLastError") == "hipSuccess"
    free, total = sim.hipMemGetInfo()
    with Floats(sim, 1 << 20):
        assert sim.hipMemGetInfo() == (free - (4 << 20), total)


def test_memory_limit_from_environment(run_script: Callable[..., str]) -> None:
    code = "print(sim.status('hipMalloc', 1 << 20), sim.status('hipMalloc', 1))"
    assert run_script(code, HIPATTN_CPU_MEMORY=str(1 << 20)).split() == ["hipSuccess", "hipErrorOutOfMemory"]


def test_pointer_queries(sim: Simulator) -> None:
    with Floats(sim, 100) as x:
        base, size = sim.hipMemGetAddressRange(int(x) + 40)
        assert (int(base), size) == (int(x), 400)
        assert sim.status("hipMemGetAddressRange", int(x) + 400) == "hipErrorNotFound"


def test_overrun_of_a_copy_is_refused(sim: Simulator) -> None:
    with Floats(sim, 4) as x:
        kind = sim.kind.hipMemcpyHostToDevice
        host = np.zeros(5, np.float32)
        assert sim.status("hipMemcpy", x.pointer, host, 20, kind) == "hipErrorInvalidValue"
        assert sim.status("hipMemsetAsync", x.pointer, 0, 17, None) == "hipErrorInvalidValue"


def test_copy_after_free_faults_when_it_runs(sim: Simulator, stream: Any) -> None:
    x = sim.hipMalloc(64)
    sim.hipFree(x)
    sim.hipMemcpyAsync(np.zeros(16, np.float32), x, 64, sim.kind.hipMemcpyDeviceToHost, stream)
    name, message = fault(sim, stream)
    assert name == "hipErrorIllegalAddress"
    assert "a copy's source of 64 bytes" in message
    assert "inside freed memory: a 64-byte allocation" in message


def test_damaged_canary_is_found(sim: Simulator) -> None:
    x = sim.hipMalloc(100)
    ctypes.memset(int(x) + 103, 1, 1)  # inside the last 16 bytes, where no guard page catches it
    assert sim.status("hipFree", x) == "hipErrorIllegalAddress"
    message = sim.message("hipErrorIllegalAddress")
    assert "something wrote 3 bytes past the end of the 100-byte allocation" in message


def test_fills_and_copies(sim: Simulator, stream: Any) -> None:
    with Floats(sim, 12) as x, Floats(sim, 12, 7) as y:
        sim.hipMemsetAsync(x.pointer, 0x40, 48, stream)
        pattern = np.uint32(0x40404040).view(np.float32)
        sim.hipMemcpy2DAsync(x.pointer, 16, int(y) + 4, 12, 8, 3, sim.kind.hipMemcpyDeviceToDevice, stream)
        sim.hipStreamSynchronize(stream)
        assert x.read().reshape(3, 4).tolist() == [[7, 7, pattern, pattern]] * 3
        sim.hipMemsetD32Async(x.pointer, int(np.float32(-2.5).view(np.int32)), 3, stream)
        sim.hipStreamSynchronize(stream)
        assert x.read()[:4].tolist() == [-2.5, -2.5, -2.5, pattern]
        assert sim.status("hipMemsetD32Async", x.pointer, 0, 13, stream) == "hipErrorInvalidValue"


def test_free_async_is_ordered(sim: Simulator, kernels: Kernels, stream: Any) -> None:
    before = control.live_allocations()
    x = sim.hipMallocAsync(64, stream)
    sim.hipMemsetAsync(x, 0, 64, stream)
    kernels("slow", x, 3_000_000, stream=stream)
    sim.hipFreeAsync(x, stream)
    assert control.live_allocations() == before + 1
    assert sim.status("hipFree", x) == "hipErrorInvalidValue"
    sim.hipStreamSynchronize(stream)
    assert control.live_allocations() == before


def test_freed_addresses_are_not_reused_soon(sim: Simulator) -> None:
    seen = set()
    for _ in range(3000):
        pointer = sim.hipMalloc(256)
        assert int(pointer) not in seen
        seen.add(int(pointer))
        sim.hipFree(pointer)


# Kernels and their faults


def test_overrun_names_kernel_block_and_thread(sim: Simulator, kernels: Kernels) -> None:
    with Floats(sim, 256, 1) as x:
        kernels("twice", x, grid=2, block=160)
        name, message = fault(sim)
        assert name == "hipErrorIllegalAddress"
        assert message.startswith("kernel twice, block (1, 0, 0), thread (96, 0, 0): ")
        assert "0 bytes past the end of a 1024-byte allocation" in message


def test_fault_is_sticky_until_cleared(sim: Simulator, kernels: Kernels) -> None:
    kernels("twice", 64)
    assert "a null pointer" in fault(sim)[1]
    with pytest.raises(HipError, match="hipErrorIllegalAddress"):
        sim.hipMalloc(16)
    assert sim.status("hipDeviceSynchronize") == "hipErrorIllegalAddress"
    assert sim.status("hipGetLastError") == "hipErrorIllegalAddress"
    assert sim.status("hipGetDevice") == "hipSuccess"
    sim.clear_fault()
    with Floats(sim, 4, 1) as x:
        kernels("twice", x, block=4)
        assert x.read().tolist() == [2] * 4


def test_use_after_free(sim: Simulator, kernels: Kernels) -> None:
    x = sim.hipMalloc(4096)
    sim.hipFree(x)
    kernels("twice", x, block=32)
    _, message = fault(sim)
    assert "thread (0, 0, 0): reads address" in message
    assert "inside freed memory: a 4096-byte allocation" in message


def test_read_before_an_allocation(sim: Simulator, kernels: Kernels) -> None:
    with Floats(sim, 1024) as x:
        kernels("twice", int(x) - 8)
        assert "8 bytes before the start of a 4096-byte allocation" in fault(sim)[1]


@pytest.mark.parametrize(
    ("name", "n", "lds", "message"),
    [
        ("dynamic_overrun", 64, 256, "0 bytes past the end of its 256 bytes of dynamic LDS"),
        ("shared_overrun", 1024, 0, "an index outside its __shared__ or local array, or __builtin_trap"),
        ("deep_stack", 1, 0, "its stack of 124 KB overflows"),
        ("divide", 0, 0, "an integer division by zero"),
    ],
)
def test_faults_inside_a_block(sim: Simulator, kernels: Kernels, name: str, n: int, lds: int, message: str) -> None:
    with Floats(sim, 4) as x:
        kernels(name, x, n, lds=lds)
        said = f"kernel {name}, block (0, 0, 0), thread (0, 0, 0): {message}"
        assert fault(sim) == ("hipErrorIllegalAddress", said)


def test_trap_is_a_launch_failure(sim: Simulator, kernels: Kernels) -> None:
    kernels("trap", block=64)
    name, message = fault(sim)
    assert name == "hipErrorLaunchFailure"
    assert message == "kernel trap, block (0, 0, 0), thread (3, 0, 0): the third thread gives up"


def test_shared_memory_is_poisoned_for_each_block(sim: Simulator, kernels: Kernels) -> None:
    with Floats(sim, 64 * 64, 0) as x:
        for dynamic in (0, 1):
            kernels("poison", x, dynamic, grid=64, block=64, lds=256 * dynamic)
            assert np.isnan(x.read()).all()


@pytest.mark.parametrize("block", [1, 63, 64, 65, 256, 1000, 1024])
def test_barrier(sim: Simulator, kernels: Kernels, block: int) -> None:
    with Floats(sim, 8 * block) as x:
        kernels("neighbour", x, grid=8, block=block)
        assert (x.read().reshape(8, block) == (np.arange(block) + 1) % block).all()


def test_barrier_after_exit(sim: Simulator, kernels: Kernels) -> None:
    kernels("leave_early", n=5, block=256)
    assert fault(sim) == (
        "hipErrorLaunchFailure",
        "kernel leave_early, block (0, 0, 0): barrier divergence: "
        "251 of 256 threads arrived at __syncthreads; thread (0, 0, 0) has exited",
    )


def test_lanes_at_different_barriers(sim: Simulator, kernels: Kernels) -> None:
    with Floats(sim, 4) as x:
        kernels("two_barriers", x, 5, block=64)
        _, message = fault(sim)
        assert "barrier divergence" in message
        assert "thread (5, 0, 0) waits at another __syncthreads" in message


def test_waves_may_wait_at_different_barriers(sim: Simulator, kernels: Kernels) -> None:
    with Floats(sim, 4) as x:
        kernels("two_barriers", x, 64, block=128)
        assert x.read()[:2].tolist() == [1, 1]


@pytest.mark.parametrize(("block", "wave_sizes"), [(64, [64]), (100, [64, 36])])
def test_exchange_follows_branches(sim: Simulator, kernels: Kernels, block: int, wave_sizes: list[int]) -> None:
    with Floats(sim, 2 * block) as x:
        kernels("divergent_sum", x, 10, block=block)
        branch, whole = x.read().reshape(block, 2).T
        for i, size in enumerate(wave_sizes):
            wave = slice(64 * i, 64 * i + size)
            assert branch[wave].tolist() == [10] * 10 + [100 * (size - 10)] * (size - 10)
            assert whole[wave].tolist() == [size] * size


def test_exchange_in_a_loop_meets_again_behind_it(sim: Simulator, kernels: Kernels) -> None:
    with Floats(sim, 64) as x:
        kernels("loop_sum", x, block=64)
        active = 64 - np.arange(64)  # lanes still in the loop at each turn
        assert x.read().tolist() == (np.cumsum(active) + 64000).tolist()


def test_inactive_lanes_are_poison(sim: Simulator, kernels: Kernels) -> None:
    with Floats(sim, 10, 0) as x:
        kernels("inactive_slot", x, 10, block=64)
        assert np.isnan(x.read()).all()


def test_seed_shuffles_blocks(run_script: Callable[..., str]) -> None:
    code = """
kernels = Kernels(sim, images[0])
x = Floats(sim, 65, 0)
kernels("order", x, grid=64)
print(*x.read()[1:].astype(int))
"""
    plain = run_script(code, HIPATTN_CPU_THREADS="1").split()
    shuffled = run_script(code, HIPATTN_CPU_THREADS="1", HIPATTN_CPU_SEED="5").split()
    assert plain == [str(i) for i in range(64)]
    assert shuffled != plain
    assert sorted(shuffled, key=int) == plain


# Launching


@pytest.mark.parametrize(
    ("shape", "lds", "name"),
    [
        ((0, 1, 1, 1, 1, 1), 0, "hipErrorInvalidConfiguration"),
        ((1, 1, 1, 1, 0, 1), 0, "hipErrorInvalidConfiguration"),
        ((1, 1, 1, 1025, 1, 1), 0, "hipErrorInvalidConfiguration"),
        ((1, 1, 1, 32, 64, 1), 0, "hipErrorInvalidConfiguration"),
        ((1, 65537, 1, 1, 1, 1), 0, "hipErrorInvalidConfiguration"),
        ((1, 1, 1, 257, 1, 1), 0, "hipErrorLaunchFailure"),
        ((1, 1, 1, 1, 1, 1), (64 << 10) + 1, "hipErrorInvalidValue"),
        ((1, 1, 1, 1, 1, 1), 64 << 10, "hipErrorLaunchOutOfResources"),  # the module's static LDS takes 4 KB
    ],
)
def test_launch_limits(sim: Simulator, kernels: Kernels, shape: tuple[int, ...], lds: int, name: str) -> None:
    function = kernels.function("nothing")  # 256 threads at most
    assert sim.status("hipModuleLaunchKernel", function, *shape, lds, None, None, None) == name
    assert sim.status("hipDeviceSynchronize") == "hipSuccess"


def test_argument_block_must_fit(sim: Simulator, kernels: Kernels) -> None:
    function = kernels.function("twice")
    arguments = Arguments()
    for size, name in ((8, "hipErrorInvalidValue"), (20, "hipErrorInvalidValue"), (16, "hipSuccess")):
        length = ctypes.c_size_t(size)
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(arguments), 2, ctypes.addressof(length), 3)
        with Floats(sim, 1, 1) as x:
            arguments.x = int(x)
            launch = (function, 1, 1, 1, 1, 1, 1, 0, None)
            assert sim.status("hipModuleLaunchKernel", *launch, None, extra) == name
            pointers = (ctypes.c_void_p * 2)(ctypes.addressof(arguments), ctypes.addressof(arguments) + 8)
            assert sim.status("hipModuleLaunchKernel", *launch, pointers, extra) == "hipErrorInvalidValue"
            assert sim.status("hipModuleLaunchKernel", *launch, None, None) == "hipErrorInvalidValue"
            sim.hipModuleLaunchKernel(*launch, pointers, None)
            assert x.read()[0] == (4 if name == "hipSuccess" else 2)


def test_arguments_are_copied_at_the_call(sim: Simulator, kernels: Kernels, stream: Any) -> None:
    with Floats(sim, 1, 0) as x:
        kernels("slow", x, 1_000_000, stream=stream)  # its Arguments are garbage once the call returns
        kernels("twice", x, stream=stream)
        sim.hipStreamSynchronize(stream)
        assert x.read()[0] == 2_000_000


def test_images(sim: Simulator, compile_kernels: Callable[[str], Path]) -> None:
    image = compile_kernels("gfx942").read_bytes()
    for bad in (b"\0" * 128, b"no ELF at all" * 10, image[: len(image) // 2], image[:-200], image[:64]):
        assert sim.status("hipModuleLoadData", bad) == "hipErrorInvalidImage"
    other = compile_kernels("gfx1100").read_bytes()
    assert sim.status("hipModuleLoadData", other) == "hipErrorNoBinaryForGpu"


def test_functions(sim: Simulator, kernels: Kernels) -> None:
    assert sim.status("hipModuleGetFunction", kernels.module, b"absent") == "hipErrorNotFound"
    attribute = sim.hip.hipFunction_attribute
    nothing = kernels.function("nothing")
    ask = sim.hipFuncGetAttribute
    assert ask(attribute.HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, nothing) == 256
    assert ask(attribute.HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, nothing) == 4096
    assert sim.hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(nothing, 256, 0) == 8
    assert sim.hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(nothing, 256, 30 << 10) == 1


def test_static_lds_is_the_kernels_own(sim: Simulator, kernels: Kernels) -> None:
    which = sim.hip.hipFunction_attribute.HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
    with Floats(sim, 1, 0) as x:
        for name in ("tile_a", "tile_b"):
            assert sim.hipFuncGetAttribute(which, kernels.function(name)) == 4096 + 40000
            kernels(name, x, 9999)
            assert np.isnan(x.read()[0])
        with pytest.raises(HipError, match="hipErrorLaunchOutOfResources"):
            kernels("tile_a", x, lds=(64 << 10) - 44000)


def test_many_modules_are_apart(sim: Simulator, compile_kernels: Callable[[str], Path]) -> None:
    image = compile_kernels("gfx942").read_bytes()
    for _ in range(50):
        one, two = Kernels(sim, image), Kernels(sim, image)
        assert int(one.function("twice")) != int(two.function("twice"))
        sim.hipModuleUnload(one.module)
        assert sim.status("hipModuleUnload", one.module) == "hipErrorInvalidHandle"
        sim.hipModuleUnload(two.module)


# Streams and events


def test_launch_returns_before_the_kernel_ends(sim: Simulator, kernels: Kernels, stream: Any) -> None:
    with Floats(sim, 1, 0) as x:
        event = sim.hipEventCreateWithFlags(0)
        start = time.perf_counter()
        kernels("slow", x, 30_000_000, stream=stream)
        sim.hipEventRecord(event, stream)
        returned = time.perf_counter() - start
        assert sim.status("hipStreamQuery", stream) == "hipErrorNotReady"
        assert sim.status("hipEventQuery", event) == "hipErrorNotReady"
        assert sim.status("hipGetLastError") == "hipSuccess"  # not ready is no error
        sim.hipEventSynchronize(event)
        assert sim.status("hipStreamQuery", stream) == "hipSuccess"
        assert time.perf_counter() - start > 5 * returned
        sim.hipEventDestroy(event)


def test_elapsed_time_is_the_kernels(sim: Simulator, kernels: Kernels, stream: Any) -> None:
    with Floats(sim, 1, 0) as x:
        first, second = sim.hipEventCreateWithFlags(0), sim.hipEventCreateWithFlags(0)
        assert sim.status("hipEventElapsedTime", first, second) == "hipErrorInvalidHandle"
        sim.hipEventRecord(first, stream)
        kernels("slow", x, 10_000_000, stream=stream)
        sim.hipEventRecord(second, stream)
        assert sim.status("hipEventElapsedTime", first, second) == "hipErrorNotReady"
        start = time.perf_counter()
        sim.hipStreamSynchronize(stream)
        waited = (time.perf_counter() - start) * 1e3
        assert sim.hipEventElapsedTime(first, second) >= 0.5 * waited
        sim.hipEventDestroy(first)
        sim.hipEventDestroy(second)


def test_event_orders_two_streams(sim: Simulator, kernels: Kernels) -> None:
    one, two = sim.hipStreamCreateWithFlags(1), sim.hipStreamCreateWithFlags(1)
    event = sim.hipEventCreateWithFlags(2)
    with Floats(sim, 1, 0) as x:
        kernels("slow", x, 5_000_000, stream=one)
        sim.hipEventRecord(event, one)
        sim.hipStreamWaitEvent(two, event, 0)
        kernels("twice", x, stream=two)
        sim.hipStreamSynchronize(two)
        assert x.read()[0] == 10_000_000
        # Without the event, the second stream is done long before.
        x.write(np.zeros(1, np.float32))
        kernels("slow", x, 5_000_000, stream=one)
        kernels("nothing", stream=two)
        sim.hipStreamSynchronize(two)
        assert sim.status("hipStreamQuery", one) == "hipErrorNotReady"
        sim.hipStreamSynchronize(one)
    for made in (one, two):
        sim.hipStreamDestroy(made)
    sim.hipEventDestroy(event)


@pytest.mark.parametrize(("flags", "ordered"), [(0, True), (1, False)])
def test_null_stream_waits_for_blocking_streams(sim: Simulator, kernels: Kernels, flags: int, ordered: bool) -> None:
    other = sim.hipStreamCreateWithFlags(flags)
    with Floats(sim, 1, 0) as x, Floats(sim, 1, 3) as y:
        kernels("slow", x, 20_000_000, stream=other)
        kernels("twice", y)  # in the null stream
        done = sim.status("hipStreamQuery", None)
        y.read()
        assert (sim.status("hipStreamQuery", other) == "hipSuccess") is ordered
        if ordered:
            assert done == "hipErrorNotReady"
        # And the other way round.
        sim.hipStreamSynchronize(other)
        kernels("slow", x, 20_000_000)
        kernels("twice", y, stream=other)
        sim.hipStreamSynchronize(other)
        assert (sim.status("hipStreamQuery", None) == "hipSuccess") is ordered
        sim.hipDeviceSynchronize()
    sim.hipStreamDestroy(other)


def test_free_waits_for_the_device(sim: Simulator, kernels: Kernels, stream: Any) -> None:
    with Floats(sim, 1, 0) as x:
        kernels("slow", x, 5_000_000, stream=stream)
    assert sim.status("hipStreamQuery", stream) == "hipSuccess"


def test_destroyed_stream_drains(sim: Simulator, kernels: Kernels) -> None:
    made = sim.hipStreamCreateWithFlags(1)
    with Floats(sim, 1, 0) as x:
        kernels("slow", x, 5_000_000, stream=made)
        sim.hipStreamDestroy(made)
        assert sim.status("hipStreamQuery", made) == "hipErrorContextIsDestroyed"
        sim.hipDeviceSynchronize()
        assert x.read()[0] == 5_000_000


def test_host_function_runs_in_order(sim: Simulator, kernels: Kernels, stream: Any) -> None:
    seen: list[float] = []
    with Floats(sim, 1, 0) as x:

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def look(data: int) -> None:
            seen.append(ctypes.c_float.from_address(data).value)

        kernels("slow", x, 2_000_000, stream=stream)
        function = ctypes.cast(look, ctypes.c_void_p).value
        sim.hipLaunchHostFunc(stream, function, int(x))
        sim.hipStreamSynchronize(stream)
        assert seen == [2_000_000]


def test_stream_flags(sim: Simulator) -> None:
    assert sim.status("hipStreamCreateWithFlags", 7) == "hipErrorInvalidValue"


@pytest.mark.parametrize("delay", [0, 200])
def test_streams_under_stress(sim: Simulator, kernels: Kernels, delay: int) -> None:
    """Chains over several streams, fed by several host threads and ordered by events, give what one would."""
    results = []

    def chain() -> None:
        sim.hipSetDevice(0)
        streams = [sim.hipStreamCreateWithFlags(1) for _ in range(3)]
        event = sim.hipEventCreateWithFlags(2)
        with Floats(sim, 256, 0) as x, Floats(sim, 256, 0) as y:
            for step in range(100):
                current = streams[step % 3]
                sim.hipStreamWaitEvent(current, event, 0)
                kernels("slow", x, 1, block=1, stream=current)
                sim.hipMemcpyAsync(y.pointer, x.pointer, 1024, sim.kind.hipMemcpyDeviceToDevice, current)
                sim.hipEventRecord(event, current)
            sim.hipEventSynchronize(event)
            results.append(y.read()[0])
        for made in streams:
            sim.hipStreamDestroy(made)
        sim.hipEventDestroy(event)

    threads = [threading.Thread(target=chain) for _ in range(4)]
    with control.delayed_streams(delay):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [100] * 4


# Fault injection and the process's end


def test_fault_injection(sim: Simulator, kernels: Kernels) -> None:
    before = control.call_count("hipMalloc")
    with control.failing("hipMalloc:2,hipModuleLaunchKernel:1,hipMemGetInfo:1"):
        pointer = sim.hipMalloc(16)
        assert sim.status("hipMalloc", 16) == "hipErrorOutOfMemory"
        assert sim.status("hipMemGetInfo") == "hipErrorUnknown"
        launch = (kernels.function("nothing"), 1, 1, 1, 1, 1, 1, 0, None, None, None)
        assert sim.status("hipModuleLaunchKernel", *launch) == "hipErrorLaunchFailure"
        assert sim.status("hipModuleLaunchKernel", *launch) == "hipSuccess"
        assert sim.status("hipDeviceSynchronize") == "hipSuccess"
    sim.hipFree(pointer)
    sim.hipFree(sim.hipMalloc(16))
    assert control.call_count("hipMalloc") == before + 3
    assert sim.library.sim_should_fail(b"hipblasSgemm") == 0
    assert control.call_count("hipblasSgemm") >= 1


def test_injected_failure_of_a_wait_comes_after_the_wait(sim: Simulator, kernels: Kernels, stream: Any) -> None:
    with Floats(sim, 1, 0) as x:
        kernels("slow", x, 5_000_000, stream=stream)
        with control.failing("hipStreamSynchronize:1"):
            assert sim.status("hipStreamSynchronize", stream) == "hipErrorUnknown"
        assert sim.status("hipStreamQuery", stream) == "hipSuccess"


def test_fault_injection_from_environment(run_script: Callable[..., str]) -> None:
    code = "print(*(sim.status('hipMalloc', 16) for _ in range(4)))"
    printed = run_script(code, HIPATTN_CPU_FAIL="hipMalloc:3").split()
    assert printed == ["hipSuccess", "hipSuccess", "hipErrorOutOfMemory", "hipSuccess"]


def test_reported_fault(sim: Simulator, stream: Any) -> None:
    sim.library.sim_report_fault(ctypes.c_void_p(int(stream)), 700, b"operand A lies outside its allocation")
    assert fault(sim, stream)[1] == "operand A lies outside its allocation"


def test_exit_with_work_pending(run_script: Callable[..., str]) -> None:
    run_script(
        """
kernels = Kernels(sim, images[0])
x = Floats(sim, 1, 0)
for _ in range(8):
    kernels("slow", x, 10**9, stream=sim.hipStreamCreateWithFlags(1))
"""
    )


def test_fork(run_script: Callable[..., str]) -> None:
    printed = run_script(
        """
kernels = Kernels(sim, images[0])
x = Floats(sim, 1, 0)
kernels("slow", x, 10**6, stream=sim.hipStreamCreateWithFlags(0))
sys.stdout.flush()
child = os.fork()
if child == 0:
    print(sim.status("hipDeviceSynchronize"), sim.status("hipMalloc", 16), flush=True)
    sys.exit()
print(os.waitpid(child, 0)[1], sim.status("hipDeviceSynchronize"))
"""
    )
    assert printed.splitlines() == ["hipErrorNotInitialized hipErrorNotInitialized", "0 hipSuccess"]


def test_fault_of_other_code_is_not_swallowed(run_script: Callable[..., str]) -> None:
    printed = run_script(
        """
import faulthandler
faulthandler.enable()
kernels = Kernels(sim, images[0])
kernels("twice", 64)
print(sim.status("hipDeviceSynchronize"), flush=True)
child = os.fork()
if child == 0:
    ctypes.string_at(8)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""
    )
    assert printed.splitlines() == ["hipErrorIllegalAddress", "11"]
