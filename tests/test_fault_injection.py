"""Every HIP call of a forward pass fails once: an error that names it, nothing leaked, and the next call works."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest

from hipattn import CompileError, Device, HipAttentionKernels, HipError, KVCache, Stream
from hipattn.attn import reference
from hipattn.compiler import loader, program
from hipattn.kernels import causal_mask, confine, kv_append, scale, softmax
from hipattn.runtime import bindings
from hipattn.runtime.blas import Blas
from hipattn.runtime.buffer import live
from tests.helpers.gate import held
from tests.helpers.inputs import Array, qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import attention_bound

pytestmark = pytest.mark.skipif(not bindings.platform().simulated, reason="only the simulator can be made to fail")

Fail = Callable[[str], AbstractContextManager[None]]


def forward(stream: Stream, arrays: tuple[Array, Array, Array]) -> Array:
    q, k, v = arrays
    batch, seq, heads, dim = k.shape
    with (
        KVCache(1, batch, seq, heads, dim, dtype=k.dtype, stream=stream) as cache,
        HipAttentionKernels(stream.device) as kernels,
    ):
        out = kernels.compute_attention(*upload(stream, q, k, v), causal=True, cache=cache, stream=stream)
        return out.numpy(stream=stream)


def forget() -> None:
    """Make the next forward pass load its kernels and make its hipBLAS handle, as the first one did."""
    for family in (causal_mask, confine, kv_append, scale, softmax):
        family._plan.cache_clear()
    loader._loaded.clear()
    Blas._per_thread.__dict__.clear()
    program.compiler_version.cache_clear()


def calls_of_a_forward_pass() -> list[str]:
    arrays = qkv(batch=2, seq_q=9, heads_kv=2, dtype=np.float16)
    with Stream() as stream:
        forward(stream, arrays)  # the disk has the kernels from here on
        forget()
    with Stream() as stream, bindings.record() as calls:
        forward(stream, arrays)
    # What an error's text is made of is no part of it.
    return [name for name, _ in calls if not name.endswith(("GetErrorString", "StatusToString"))]


# A failed release is another matter: test_buffer.
RELEASES = ("hipFreeAsync", "hipblasDestroy", "hipModuleUnload")


def around_a_release(calls: list[str]) -> set[tuple[str, int]]:
    """Return the calls, by name and number, that may fail unnoticed: those that choose the device for a release.

    Memory is freed all the same, and a destructor has nobody to tell.
    """
    counts, found = Counter[str](), set()
    for at, name in enumerate(calls):
        counts[name] += 1
        chooses = name == "hipSetDevice" and not {*calls[at - 1 : at + 2]}.isdisjoint(RELEASES)
        if chooses or name == "hipGetDevice":  # only destructors ask
            found.add((name, counts[name]))
    return found


def test_every_call_can_fail(fail: Fail) -> None:
    arrays = qkv(batch=2, seq_q=9, heads_kv=2, dtype=np.float16)
    expected = reference.attention(*arrays, causal=True)
    bound = attention_bound(*arrays, causal=True)
    calls = calls_of_a_forward_pass()
    assert {
        *("hipMallocAsync", "hipMemcpyAsync", "hipStreamSynchronize", "hipModuleLoadData", "hipModuleGetFunction"),
        *("hipModuleLaunchKernel", "hipblasCreate", "hipblasSetStream", "hipblasGemmStridedBatchedEx"),
    } <= set(calls)
    unnoticed = around_a_release(calls)
    for name, count in Counter(calls).items():
        for n in range(1, count + 1) if name not in RELEASES else ():
            forget()
            with Stream() as stream:
                before = live()
                with fail(f"{name}:{n}"):
                    said = ""
                    try:
                        out = forward(stream, arrays)
                    except HipError as error:
                        said = str(error)
                if said:
                    assert name in said
                else:
                    assert (name, n) in unnoticed, f"nothing was raised with {name}:{n}"
                    assert_close(out, expected, atol=bound, name=f"with {name}:{n}")
                if live() != before:
                    gc.collect()  # it takes 0.2 s in a large suite
                assert live() == before, f"{name}:{n} leaks"
                assert_close(forward(stream, arrays), expected, atol=bound, name=f"after {name}:{n}")


def test_every_call_of_a_compilation_can_fail(fail: Fail) -> None:
    source = program.Program('extern "C" __global__ void nothing() {}', "nothing.hip")
    arch = Device(0).arch
    with bindings.record() as calls:
        source.compile(arch)
    counts = Counter(name for name, _ in calls if name != "hiprtcDestroyProgram")
    assert {"hiprtcCreateProgram", "hiprtcCompileProgram", "hiprtcGetCodeSize", "hiprtcGetCode"} <= set(counts)
    for name, count in counts.items():
        for n in range(1, count + 1):
            with fail(f"{name}:{n}"), pytest.raises((HipError, CompileError), match=name):
                source.compile(arch)
            assert source.compile(arch).image  # the next works


def test_a_failed_launch_leaves_the_cache_as_it_was(fail: Fail, stream: Stream) -> None:
    q, k, v = qkv(batch=1, seq_q=4)
    with (
        KVCache(1, 1, 8, 4, 40, dtype=np.float32, stream=stream) as cache,
        HipAttentionKernels(stream.device) as kernels,
    ):
        tensors = upload(stream, q, k, v)
        kernels.compute_attention(*tensors, cache=cache, stream=stream)
        with fail("hipModuleLaunchKernel:2"), pytest.raises(HipError):  # the softmax, after the append
            kernels.compute_attention(*tensors, cache=cache, stream=stream)
        assert cache.length() == 4


@pytest.mark.parametrize("n", [1, 2])
def test_a_failed_stage_falls_back_to_the_cpu(
    fail: Fail, stream: Stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, n: int
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    arrays = qkv(heads_kv=2, dtype=np.float16)
    with HipAttentionKernels(stream.device) as kernels:
        tensors = upload(stream, *arrays)
        for _ in range(2):
            with fail(f"hipModuleLaunchKernel:{n}"):
                out = kernels.compute_attention(*tensors, causal=True, stream=stream)
            assert_close(
                out.numpy(),
                reference.attention(*arrays, causal=True),
                atol=attention_bound(*arrays, causal=True),
            )
        assert kernels.fallbacks.total() == 2
        warnings = [record for record in caplog.records if "recomputed on the CPU" in record.message]
        assert len(warnings) == 1, "one cause is logged once"


@pytest.mark.parametrize(
    ("stage", "options"), [("scale_inplace", {"factor": 0.5}), ("apply_causal_mask", {}), ("compute_softmax", {})]
)
def test_a_stage_of_its_own_falls_back_to_the_cpu(
    fail: Fail, stream: Stream, monkeypatch: pytest.MonkeyPatch, stage: str, options: dict[str, float]
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    scores = np.random.default_rng(0).standard_normal((2, 9, 12), np.float32)
    computed, recomputed = upload(stream, scores, scores)
    with HipAttentionKernels(stream.device) as kernels:
        getattr(kernels, stage)(computed, **options, stream=stream)
        with fail("hipModuleLaunchKernel:1"):
            getattr(kernels, stage)(recomputed, **options, stream=stream)
        assert kernels.fallbacks == {stage: 1}
    assert_close(recomputed.numpy(), computed.numpy(), rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2])
def test_a_failed_product_falls_back_to_the_cpu(
    fail: Fail, stream: Stream, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    arrays = qkv(batch=1, heads_kv=2)
    with HipAttentionKernels(stream.device) as kernels:
        with fail(f"hipblasGemmStridedBatchedEx:{n}"):
            out = kernels.compute_attention(*upload(stream, *arrays), causal=True, stream=stream)
        assert kernels.fallbacks.total() == 1
        expected, bound = reference.attention(*arrays, causal=True), attention_bound(*arrays, causal=True)
        assert_close(out.numpy(), expected, atol=bound)


def test_a_fallback_does_not_wait_for_another_stream(
    fail: Fail, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A failed product: after a failed launch all streams are waited for, to know whether the device is broken.
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    arrays = qkv(heads_kv=2)
    expected, bound = reference.attention(*arrays, causal=True), attention_bound(*arrays, causal=True)
    with Stream(stream.device) as other, HipAttentionKernels(stream.device) as kernels, held(other) as gate:
        late = threading.Timer(20, gate.open)  # were it to wait
        late.start()
        (unrelated,) = upload(stream, np.ones(8, np.float32))
        stream.sync()
        scale.launch(unrelated, 3.0, stream=other)
        with fail("hipblasGemmStridedBatchedEx:1"):
            out = kernels.compute_attention(*upload(stream, *arrays), causal=True, stream=stream)
        assert_close(out.numpy(), expected, atol=bound)
        assert not other.done
        assert kernels.fallbacks.total() == 1
        late.cancel()
        gate.open()
        assert_close(unrelated.numpy(), np.full(8, 3.0))


@pytest.mark.parametrize(
    "call", ["hipModuleLaunchKernel:1", "hipModuleLaunchKernel:2", "hipblasGemmStridedBatchedEx:1"]
)
def test_a_fallback_waits_for_what_it_reads(
    fail: Fail, stream: Stream, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    q, k, v = qkv(heads_kv=2)
    expected, bound = reference.attention(q, k, v, causal=True), attention_bound(q, k, v, causal=True)
    with Stream(stream.device) as writer, HipAttentionKernels(stream.device) as kernels:
        tensors = upload(stream, q / 2, k, v / 2)
        stream.sync()
        with held(writer) as gate:
            for tensor in tensors[::2]:
                scale.launch(tensor, 2.0, stream=writer)  # not before the gate opens
            stream.wait(writer)
            threading.Timer(0.2, gate.open).start()
            with fail(call):
                out = kernels.compute_attention(*tensors, causal=True, stream=stream)
            assert_close(out.numpy(), expected, atol=bound)
        assert kernels.fallbacks.total() == 1
