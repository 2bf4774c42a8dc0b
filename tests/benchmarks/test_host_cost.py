"""Benchmarks of what the host pays per call. Run with ``pytest tests/benchmarks --benchmark-only``.

They report figures; they assert none. On the cpu platform the library calls themselves are the simulator's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import hipattn
from hipattn import Device, HipAttentionKernels, LaunchConfig, Module, ScoreMod, Stream
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.program import Program
from hipattn.kernels import flash_fwd
from hipattn.runtime import Arguments, Kernel, bindings
from hipattn.runtime.module import Extra
from tests.helpers.decode import Caches
from tests.helpers.inputs import poisoned, qkv, upload

CONFIG = LaunchConfig(1, 1)


class NoParams(Arguments):
    _fields_ = (("unused", ctypes.c_int32),)


SOURCE = 'struct NoParams { int unused; };\nextern "C" __global__ void empty(NoParams) {}'


@pytest.fixture
def empty(device: Device) -> Kernel:
    return Module(Program(SOURCE).compile(device.arch).image, device).kernel("empty", NoParams)


def drained(stream: Stream, call: Any) -> Any:
    """Return `call`, which now and then waits, so that the stream's queue does not grow without end."""
    count = iter(range(10**9))

    def run() -> None:
        call()
        if next(count) % 256 == 0:
            stream.sync()

    return run


def test_bindings_launch(benchmark: BenchmarkFixture, stream: Stream, empty: Kernel) -> None:
    """The bindings' own call, the floor of `Kernel.launch`."""
    arguments, extra = NoParams(0), Extra(ctypes.sizeof(NoParams))
    extra.point_to(arguments)
    function, native = empty._function, stream.native
    call = bindings.hip.hipModuleLaunchKernel
    benchmark(
        drained(stream, lambda: call(function, 1, 1, 1, 1, 1, 1, 0, native, bindings.NO_PARAMETERS, extra.native))
    )


def test_launch(benchmark: BenchmarkFixture, stream: Stream, empty: Kernel) -> None:
    arguments = NoParams(0)
    benchmark(drained(stream, lambda: empty.launch(stream, CONFIG, arguments)))


def test_launch_with_new_arguments(benchmark: BenchmarkFixture, stream: Stream, empty: Kernel) -> None:
    benchmark(drained(stream, lambda: empty.launch(stream, CONFIG, NoParams(0))))


class Nothing:
    """Stands for a binding module whose calls do nothing: what remains is hipattn's own time."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._module, name)
        if not isinstance(attribute, type) and callable(attribute):
            attribute = _success
        setattr(self, name, attribute)  # the next time it is found without this function
        return attribute


def _success(*_: Any) -> tuple[int, int]:
    return 0, 1 << 20  # an address, where one is asked for


def test_staged_outside_the_libraries(
    benchmark: BenchmarkFixture, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm `compute_attention` with library calls that do nothing."""
    tensors = upload(stream, *qkv(batch=1, seq_q=4, dtype=np.float16))
    out = poisoned(stream, tensors[0].shape, np.float16)
    with HipAttentionKernels(stream.device) as kernels:
        kernels.compute_attention(*tensors, causal=True, out=out, stream=stream)
        with monkeypatch.context() as patch:
            for name in ("hip", "hipblas"):
                patch.setattr(bindings, name, Nothing(getattr(bindings, name)))
            benchmark(lambda: kernels.compute_attention(*tensors, causal=True, out=out, stream=stream))


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "lse": {"return_lse": True},
    "bhsd": {"layout": "bhsd"},
    "window": {"window": (3, 0)},
    "alibi": {"alibi_slopes": np.ones(4, np.float32)},
    "bias": {"bias": np.zeros((4, 1, 4), np.float32)},
    "score_mod": {"score_mod": "score * t[h]"},
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("given", [True, False], ids=["out", "new"])
def test_flash_outside_the_libraries(
    benchmark: BenchmarkFixture, stream: Stream, monkeypatch: pytest.MonkeyPatch, name: str, given: bool
) -> None:
    """A warm `attention` with library calls that do nothing, into a given output or a new one."""
    q, k, v = upload(stream, *qkv(batch=1, seq_q=4, dtype=np.float16))
    refused = flash_fwd.supports(stream.device, q.dtype, 40, 40)
    if refused:
        pytest.skip(refused)
    options = {n: upload(stream, x)[0] if isinstance(x, np.ndarray) else x for n, x in FEATURES[name].items()}
    if "score_mod" in options:
        options["score_mod"] = ScoreMod(options["score_mod"], t=upload(stream, np.ones(4, np.float32))[0])
    options |= {"out": poisoned(stream, q.shape, np.float16)} if given else {}

    def run() -> None:  # and free what it made, before the library is real again
        hipattn.attention(q, k, v, **options, stream=stream)

    run()
    with monkeypatch.context() as patch:
        patch.setattr(bindings, "hip", Nothing(bindings.hip))
        benchmark(run)


@pytest.mark.parametrize("num_splits", [1, 8])
@pytest.mark.parametrize("page_size", [None, 16])
def test_decode_outside_the_libraries(
    benchmark: BenchmarkFixture, stream: Stream, monkeypatch: pytest.MonkeyPatch, num_splits: int, page_size: int | None
) -> None:
    """A warm `attention_decode` with lengths on the device and library calls that do nothing, into a given output."""
    caches = Caches.random((40, 7))
    caches = caches if page_size is None else caches.paged(page_size)
    q, k, v, lengths = upload(stream, caches.q, caches.k, caches.v, caches.lengths)
    table = None if caches.table is None else upload(stream, caches.table)[0]
    out = poisoned(stream, (2, 1, 4, 24), np.float16)

    def run() -> None:
        options: dict[str, Any] = {"block_table": table, "num_splits": num_splits, "out": out, "stream": stream}
        hipattn.attention_decode(q, k, v, lengths, **options)

    run()
    with monkeypatch.context() as patch:
        patch.setattr(bindings, "hip", Nothing(bindings.hip))
        benchmark(run)


def test_load_from_the_disk_cache(benchmark: BenchmarkFixture, device: Device, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    Program(SOURCE).compile(device.arch, cache)

    def load() -> None:
        Module(Program(SOURCE).compile(device.arch, cache).image, device).kernel("empty", NoParams)

    benchmark(load)


def test_fresh_compile(benchmark: BenchmarkFixture, device: Device) -> None:
    count = iter(range(10**9))
    benchmark.pedantic(lambda: Program(f"{SOURCE}\n// {next(count)}").compile(device.arch), rounds=5)


def test_simulated_attention(benchmark: BenchmarkFixture, stream: Stream) -> None:
    """Batch 1, 4 heads, 256 x 256, head_dim 64."""
    tensors = upload(stream, *qkv(batch=1, seq_q=256, head_dim=64, dtype=np.float16))
    with HipAttentionKernels(stream.device) as kernels:

        def run() -> None:
            kernels.compute_attention(*tensors, causal=True, stream=stream)
            stream.sync()

        benchmark.pedantic(run, rounds=5, warmup_rounds=1)
