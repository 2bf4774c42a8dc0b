"""The checks of ``verify.py``: each measures one thing on a device and returns its evidence, or raises."""

from __future__ import annotations

import gc
import itertools
import logging.handlers
import math
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import hipattn
from hipattn import (
    Device,
    DeviceTensor,
    ExecutionPlan,
    HipAttentionKernels,
    KVCache,
    LayerSpec,
    LayerWeights,
    Rope,
    Stream,
)
from hipattn.attn import reference
from hipattn.attn.functional import fallback
from hipattn.compiler import loader
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.program import Program
from hipattn.kernels import causal_mask, confine, convert, kv_append, scale, softmax
from hipattn.platforms.cpu import control
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from hipattn.tensor import BFLOAT16, FLOAT16, FLOAT32

__all__ = ["CHECKS", "RUN", "Check", "Errors", "Evidence", "Gpu", "Result", "check"]

DTYPES = (FLOAT32, FLOAT16, BFLOAT16)
# 1e-5 in float32, in 16 bits twice what rounding the result costs.
FLOOR = {FLOAT32: 1e-5, FLOAT16: 2.0**-10, BFLOAT16: 2.0**-7}

Result = dict[str, Any]


# ---- what a check is ----


class Evidence(NamedTuple):
    """What was measured, how much of its bound that takes (1: all), and what follows.

    A status of "pending" means that the library cannot do it yet, "not run" that it would prove nothing here.
    """

    text: str
    share: float = 0.0
    status: str = "passed"


@dataclass
class Check:
    """A row of the report. `measure` returns evidence, or raises."""

    section: str
    name: str
    measure: Callable[[Gpu], Evidence | str]

    def run(self, gpu: Gpu) -> Result:
        """Measure; an exception is a failure."""
        start, trace = time.perf_counter(), ""
        try:
            found = self.measure(gpu)
            evidence = Evidence(found) if isinstance(found, str) else found
        except Exception as error:
            lines = str(error).splitlines() or [""]
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            evidence = Evidence(kind + "\n".join(lines[:3]), status="failed")
            frames = traceback.format_tb(error.__traceback__)[1:]
            trace = "".join(frames) + kind + "\n".join(lines[:20])
        facts = {"section": self.section, "name": self.name, "seconds": time.perf_counter() - start}
        return {**facts, **evidence._asdict(), "trace": trace}


CHECKS: list[Check] = []


def check(section: str, name: str) -> Callable[[Callable[[Gpu], Evidence | str]], None]:
    """Make a function that measures something a row of the report."""
    return lambda measure: CHECKS.append(Check(section, name, measure))


@dataclass
class Gpu:
    """What the checks share: the device under test, a stream, and every HIP call of the run."""

    device: Device
    stream: Stream
    kernels: HipAttentionKernels
    calls: Sequence[Any]
    quick: bool

    @property
    def small(self) -> bool:
        """Whether to leave out large work: the device is slow."""
        return self.quick or self.device.simulated

    def upload(self, *arrays: Any) -> list[DeviceTensor]:
        """Copy arrays to the device."""
        return upload(self.stream, arrays)

    def poisoned(self, *shape: int, dtype: Any = FLOAT32) -> DeviceTensor:
        """Return a tensor full of NaN, so that an element that nothing writes shows."""
        return self.upload(np.full(shape, np.nan, dtype))[0]

    def attend(self, q: Any, k: Any, v: Any, **options: Any) -> tuple[Any, Any]:
        """Run the staged pipeline over [batch, seq, heads, dim] and return output and LSE."""
        out = self.poisoned(*q.shape[:3], v.shape[3], dtype=q.dtype)
        lse = self.poisoned(q.shape[0], q.shape[2], q.shape[1])
        self.kernels.compute_attention(*self.upload(q, k, v), out=out, lse=lse, stream=self.stream, **options)
        return out.numpy(), lse.numpy()

    @contextmanager
    def late(self, stream: Stream) -> Iterator[None]:
        """Put work in front of what is added to `stream`; the simulator also delays each operation."""
        ballast = DeviceTensor.empty((1 << (10 if self.small else 26),), stream=stream)
        for _ in range(30 if self.device.simulated else 6):  # there, milliseconds: the host may be busy
            scale.launch(ballast, 1.0, stream=stream)
        with control.delayed_streams(300) if self.device.simulated else nullcontext():
            yield


# ---- inputs, errors, calls ----


def inputs(
    batch: int = 1, seq: int = 33, seq_k: int | None = None, heads: int = 2, heads_kv: int | None = None,
    dim: int = 64, value_dim: int | None = None, dtype: Any = FLOAT32,
) -> list[Any]:  # fmt: skip
    """Return random q, k, v, [batch, seq, heads, dim]."""
    random = np.random.default_rng(0)
    keys = batch, seq if seq_k is None else seq_k, heads_kv or heads
    shapes = (batch, seq, heads, dim), (*keys, dim), (*keys, value_dim or dim)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def upload(stream: Stream, arrays: Sequence[Any]) -> list[DeviceTensor]:
    """Copy arrays to the stream's device."""
    return [DeviceTensor.from_numpy(array, stream=stream) for array in arrays]


def largest(array: Any) -> float:
    """Return the largest finite absolute value."""
    values = np.abs(np.asarray(array).astype(np.float64))
    return float(values.max(initial=0.0, where=np.isfinite(values)))


class Errors:
    """Errors that are within their bounds, by name. Both are relative to the largest value expected."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float, float]] = []

    def add(self, name: str, actual: Any, expected: Any, bound: float, what: str = "") -> None:
        """Compare arrays: NaN and infinities must agree, all else must be within `bound`."""
        a, e = np.asarray(actual).astype(np.float64), np.asarray(expected).astype(np.float64)
        assert a.shape == e.shape, f"{name}{what}: shape {a.shape}, expected {e.shape}"
        with np.errstate(invalid="ignore"):
            apart = np.where((a == e) | (np.isnan(a) & np.isnan(e)), 0.0, np.abs(a - e) / (largest(e) or 1.0))
        apart[np.isnan(apart)] = np.inf  # one is a NaN, the other is not
        error = float(apart.max(initial=0.0))
        if error > bound:
            at = tuple(map(int, np.unravel_index(apart.argmax(), apart.shape)))
            raise AssertionError(
                f"{name}{what}: {(apart > bound).sum()} of {a.size} errors above {bound:.1e}, the largest at "
                f"{list(at)}: {a[at]:.9g}, expected {e[at]:.9g}"
            )
        self.found.append((name, error, bound))

    def lse(self, name: str, actual: Any, expected: Any, what: str = "") -> None:
        """Compare log-sum-exps: 1e-5, absolute where they are small, since exp makes it a relative error."""
        self.add(name, actual, expected, FLOOR[FLOAT32] * max(1.0, 1.0 / (largest(expected) or 1.0)), what)

    def attention(self, q: Any, k: Any, v: Any, out: Any, lse: Any = None, **options: Any) -> None:
        """Compare with attention in float64, [batch, seq, heads, dim]."""
        expected, expected_lse = reference.attention(q, k, v, return_lse=True, **options)
        in_dtype = reference.attention(q, k, v, dtype=q.dtype, **options).astype(np.float64)
        bound = max(2 * largest(in_dtype - expected) / (largest(expected) or 1.0), FLOOR[q.dtype])
        what = f", q {q.shape}, k {k.shape}, {options}"
        self.add(q.dtype.name, out, expected, bound, what)
        if lse is not None:
            Errors().lse("LSE", lse, expected_lse, what)

    def evidence(self, before: str = "") -> Evidence:
        """Return for each name the error that is nearest to its bound."""
        nearest: dict[str, tuple[float, str]] = {}
        for name, error, bound in self.found:
            text = f"{name} {error:.1e} ≤ {bound:.1e}"
            nearest[name] = max(nearest.get(name, (0.0, text)), (error / bound, text))
        return Evidence(before + ", ".join(text for _, text in nearest.values()), max(nearest.values())[0])


def counted(calls: Sequence[Any], *names: str) -> int:
    """Return how many of the recorded calls are of functions whose names begin so."""
    return sum(name.startswith(names) for name, _ in calls)


def order(calls: Sequence[Any]) -> str:
    """Return what recorded calls ask the device to compute: kernels by their names, products as gemm."""
    steps = []
    for name, arguments in calls:
        if name == "hipModuleLaunchKernel":
            steps.append(loader.name_of(arguments[0]) or "unknown kernel")
        elif name.startswith("hipblas") and "emm" in name:
            steps.append("gemm")
    return " → ".join(step for step, _ in itertools.groupby(steps))


# ---- the review: what has to be answered of such a system ----

REVIEW = "Review"


@check(REVIEW, "wiring")
def _(gpu: Gpu) -> str:
    with bindings.record() as calls:
        hipattn.attention(*inputs(), causal=True, stream=gpu.stream)
    assert order(calls) == "flash_fwd", f"attention() runs {order(calls) or 'no kernel'}; expected flash_fwd"
    with bindings.record() as staged:
        hipattn.attention(*inputs(), causal=True, method="staged", stream=gpu.stream)
    launches, products = counted(staged, "hipModuleLaunchKernel"), counted(staged, "hipblasGemm")
    assert launches >= 2, f"attention() in stages launched {launches} kernels"
    assert products >= 2, f"attention() in stages called hipBLAS for {products} products"
    text = f"attention() makes {len(calls)} calls into HIP and runs {order(calls)}"
    return f"{text}; in stages {len(staged)}: {launches} launches, {products} hipBLAS products"


@check(REVIEW, "kernel order")
def _(gpu: Gpu) -> str:
    # The first product scales, the softmax masks.
    plain = "gemm → attention_softmax → gemm"
    causal = f"{plain} → confine_nonfinite"
    for dtype in DTYPES:
        tensors = gpu.upload(*inputs(dtype=dtype))
        with KVCache(1, 1, 33, 2, 64, dtype=dtype, stream=gpu.stream) as held:
            options: Any
            for expected, options in (
                (plain, {}),
                (causal, {"causal": True}),
                (f"kv_append → {causal}", {"causal": True, "cache": held}),
            ):
                with bindings.record() as calls:
                    gpu.kernels.compute_attention(*tensors, stream=gpu.stream, **options)
                assert order(calls) == expected, f"{dtype.name}: {order(calls)}; expected {expected}"
    return f"{causal}; with a cache, kv_append first"


@check(REVIEW, "pipeline order")
def _(gpu: Gpu) -> str:
    # 40 keys: scratch rows have no padding then, and the BLAS sums both times in the same order.
    q, k, v = (tensor.transpose(0, 2, 1, 3) for tensor in gpu.upload(*inputs(seq=40, heads=4, heads_kv=2)))
    scores, out = gpu.poisoned(1, 4, 40, 40), gpu.poisoned(1, 4, 40, 64)
    run, stream = gpu.kernels, gpu.stream

    def stages(*, scale_last: bool) -> Any:
        run.compute_qk_t(q, k, scores, stream=stream)
        if not scale_last:
            run.scale_inplace(scores, 1 / 8, stream=stream)
        run.apply_causal_mask(scores, stream=stream)
        run.compute_softmax(scores, stream=stream)
        if scale_last:
            run.scale_inplace(scores, 1 / 8, stream=stream)
        run.compute_attention_weighted_v(scores, v, out, causal=True, stream=stream)
        return out.numpy()

    whole = run.compute_attention(q, k, v, causal=True, layout="bhsd", stream=stream).numpy()
    with bindings.record() as calls:
        apart = stages(scale_last=False)
    expected = "gemm → scale_inplace → causal_mask_kernel → attention_softmax → gemm → confine_nonfinite"
    assert order(calls) == expected, f"the stages one by one run {order(calls)}; expected {expected}"
    differ, swapped = int((apart != whole).sum()), largest(stages(scale_last=True) - whole)
    assert not differ, f"{differ} of {whole.size} values differ between the five stages and compute_attention"
    assert swapped > 0.1, f"scaling after the softmax moves the result by {swapped:.1e} only"
    return f"one by one, {expected}: {differ} of {whole.size} values differ; scaled last, by up to {swapped:.1f}"


@check(REVIEW, "error handling")
def _(gpu: Gpu) -> str:
    q, k, v = gpu.upload(*inputs(seq=4, dim=8))
    (half,) = gpu.upload(np.zeros(k.shape, np.float16))
    odd, short, wide, closed = (gpu.poisoned(1, 4, *shape) for shape in ((3, 8), (2, 7), (8, 2), (2, 8)))
    closed.buffer.close()
    full = KVCache(1, 1, 4, 2, 8, dtype=FLOAT32, stream=gpu.stream)
    full.append(0, k, v, stream=gpu.stream)
    broken = Program("__global__ void broken() { undeclared = 1; }", "broken.hip")

    def attend(q: Any, k: Any = k, **options: Any) -> Callable[[], object]:
        return lambda: gpu.kernels.compute_attention(q, k, v, stream=gpu.stream, **options)

    argument = hipattn.ArgumentError
    mistakes: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (argument, "q has shape (4, 2, 8)", attend(q[0])),
        (argument, "heads", attend(odd)),
        (argument, "k has shape (1, 4, 2, 7)", attend(q, short)),
        (argument, "k is float16", attend(q, half)),
        (argument, "q has strides", attend(wide.transpose(0, 1, 3, 2))),
        (argument, "layout is 'sbhd'", attend(q, layout="sbhd")),
        (argument, "out is float32 (1, 4, 3, 8)", attend(q, out=odd)),
        (argument, "lse is float32", attend(q, lse=odd)),
        (argument, "layer is 1", attend(q, cache=full, layer=1)),
        (hipattn.CacheFullError, "holds 4 of 4 tokens", attend(q, cache=full)),
        (hipattn.ClosedError, "is closed", attend(closed)),
        (argument, "shape is (2, -1)", lambda: DeviceTensor.empty((2, -1))),
        (argument, "dtype is float64", lambda: DeviceTensor.empty((2,), np.float64)),
        (argument, "nbytes is -1", lambda: hipattn.DeviceBuffer(-1)),
        (argument, "capacity is 0", lambda: KVCache(1, 1, 0, 1, 8)),
        (argument, "index is 99", lambda: Device(99)),
        (argument, "block is 2048", lambda: hipattn.LaunchConfig(1, 2048)),
        (argument, "arch is 'gfx000'", lambda: broken.compile("gfx000")),
        (hipattn.CompileError, "undeclared", lambda: broken.compile(gpu.device.arch)),
    ]
    gc.collect()
    before = live()
    for kind, says, mistake in mistakes:
        with bindings.record() as calls:
            try:
                mistake()
                message = "nothing was raised"
            except kind as error:
                message = str(error)
        assert says in message, f"expected {kind.__name__} with {says!r}: {message}"
        done = [name for name, _ in calls if name.startswith(("hipM", "hipblasGemm"))]
        assert not done, f"{says}: raised after {done}"
        assert live() == before, f"{says}: (buffers, bytes) held were {before}, are {live()}"
    assert full.length() == 4, f"the full cache now holds {full.length()} tokens"
    return f"{len(mistakes)} mistakes, each named by the right error, after 0 allocations, launches, copies"


@check(REVIEW, "no leaks")
def _(gpu: Gpu) -> str:
    shapes: Any = {"seq": 5}, {"batch": 2, "seq": 9}, {"seq": 1, "heads": 4}, {"seq": 17, "dim": 24}
    cases = [inputs(**shape, dtype=dtype) for shape, dtype in itertools.product(shapes, DTYPES)]
    half = 9 * len(cases)

    def staged(stream: Stream, arrays: Any, *, causal: bool) -> None:
        with HipAttentionKernels(gpu.device) as kernels:
            kernels.compute_attention(*upload(stream, arrays), causal=causal, stream=stream)

    def front_door(stream: Stream, arrays: Any, *, causal: bool) -> None:
        hipattn.attention(*upload(stream, arrays), causal=causal, stream=stream)

    def grown(run: Callable[..., None]) -> str:
        """Run over new streams, and say how much more memory is taken than after the first few."""
        taken = []
        for runs in (2 * len(cases), half, half):
            for number, arrays in zip(range(runs), itertools.cycle(cases)):
                with Stream(gpu.device) as stream:
                    run(stream, arrays, causal=number % 2 == 0)
            gc.collect()
            gpu.device.sync()
            taken.append((live()[1], gpu.device.memory()[0]))
        (first, first_free), (_, half_free), (last, last_free) = taken
        lost = first_free - half_free, half_free - last_free
        assert last <= first, f"{run.__name__}: {last - first} bytes more in buffers after {2 * half} runs"
        # Others may use the device too, once: a leak takes memory in both halves.
        assert min(lost) <= 0, (
            f"{run.__name__}: {lost[0]} bytes less free after {half} runs, {lost[1]} after as many more"
        )
        return f"{last - first} bytes more in buffers, {sum(lost)} less free on the device"

    return f"{2 * half} runs: {grown(staged)}; {2 * half} × attention(), each over a new stream: {grown(front_door)}"


@check(REVIEW, "coverage: causal mask")
def _(gpu: Gpu) -> str:
    hidden = total = 0
    for (seq_q, seq_k), dtype in itertools.product(((33, 33), (5, 70), (70, 5)), DTYPES):
        before = np.random.default_rng(0).standard_normal((2, seq_q, seq_k)).astype(dtype)
        (scores,) = gpu.upload(before)
        gpu.kernels.apply_causal_mask(scores, stream=gpu.stream)
        expected = np.where(reference.causal_mask(seq_q, seq_k), before, -np.inf).astype(dtype)
        Errors().add(f"{dtype.name} [{seq_q}, {seq_k}]", scores.numpy(), expected, 0.0)
        hidden, total = hidden + int(np.isinf(expected).sum()), total + expected.size
    return f"{hidden} of {total} scores hidden as in the reference; 0 of the others changed"


@check(REVIEW, "coverage: attention")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for causal, dtype in itertools.product((False, True), DTYPES):
        q, k, v = inputs(2, heads=4, heads_kv=2, dtype=dtype)
        errors.attention(q, k, v, *gpu.attend(q, k, v, causal=causal), causal=causal)
    return errors.evidence()


@check(REVIEW, "coverage: QKV, RoPE, output")
def _(gpu: Gpu) -> Evidence:
    sizes: Any = {"hidden": 96, "heads": 4, "heads_kv": 2, "head_dim": 32, "ffn": 64}
    kinds: Any = {
        "norm": "rms",
        "norm_eps": 1e-5,
        "norm_first": True,
        "activation": "silu",
        "gated": True,
        "bias": False,
    }
    spec = LayerSpec(**sizes, **kinds, rope=Rope("interleaved"), causal=True)
    random, errors = np.random.default_rng(0), Errors()
    weights = {name: random.standard_normal(shape) / math.sqrt(shape[-1]) for name, shape in spec.shapes.items()}
    hidden = random.standard_normal((2, 33, spec.hidden))
    for dtype in DTYPES:
        arrays = [array.astype(dtype) for array in (*weights.values(), hidden)]
        *on_device, x = gpu.upload(*arrays)
        layer, out = (
            LayerWeights(**dict(zip(weights, on_device, strict=True))),
            gpu.poisoned(*hidden.shape, dtype=dtype),
        )
        with ExecutionPlan(spec, [layer], batch=2, tokens=33, capacity=33, stream=gpu.stream) as plan:
            plan.self_attention(x, 0, out=out)
        w = {name: array.astype(np.float64) for name, array in zip(weights, arrays, strict=False)}
        exact, low = (self_attention(spec, w, arrays[-1].astype(np.float64), rounded) for rounded in (None, dtype))
        bound = max(2 * largest(low - exact) / largest(exact), FLOOR[dtype])
        errors.add(dtype.name, out.numpy(), exact, bound)
    return errors.evidence("QKV projection, RoPE, KV cache, causal attention, output projection: ")


def self_attention(spec: LayerSpec, w: dict[str, Any], x: Any, dtype: Any) -> Any:
    """Return a causal layer's attention half in float64; with a dtype, rounded to it after each step."""

    def rounded(array: Any) -> Any:
        return array if dtype is None else array.astype(dtype).astype(np.float64)

    batch, seq, _ = x.shape
    heads = rounded(x @ w["qkv"].T).reshape(batch, seq, -1, spec.head_dim)
    turn = np.exp(1j * np.arange(seq)[:, None, None] * 10000.0 ** (-np.arange(spec.head_dim // 2) * 2 / spec.head_dim))
    turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * turn
    q, k = np.split(rounded(np.stack((turned.real, turned.imag), -1).reshape(heads.shape)), [spec.heads], axis=2)
    k, v = k[:, :, : spec.heads_kv], heads[:, :, spec.heads + spec.heads_kv :]
    return rounded(rounded(reference.attention(q, k, v, causal=True)).reshape(batch, seq, -1) @ w["out"].T)


@check(REVIEW, "0.1 % of the CPU's result")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype in (FLOAT32, FLOAT16):
        q, k, v = inputs(2, heads=4, dtype=dtype)
        on_cpu = numpy_attention(*(a.astype(np.float32).swapaxes(1, 2) for a in (q, k, v))).swapaxes(1, 2)
        errors.add(dtype.name, gpu.attend(q, k, v)[0], on_cpu, 1e-3)
    return errors.evidence("against NumPy in float32: ")


@check(REVIEW, "end to end")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype, axes in itertools.product(DTYPES, ((0, 1, 2, 3), (0, 2, 1, 3))):
        q, k, v = inputs(2, heads=4, heads_kv=2, dtype=dtype)
        laid_out = [np.ascontiguousarray(array.transpose(axes)) for array in (q, k, v)]
        options: Any = {"causal": True, "layout": "bshd" if axes[1] == 1 else "bhsd", "stream": gpu.stream}
        for arrays in (laid_out, gpu.upload(*laid_out)):
            out = hipattn.attention(*arrays, **options)
            host = out.numpy() if isinstance(out, DeviceTensor) else out
            errors.attention(q, k, v, host.transpose(axes), causal=True)
    return errors.evidence(f"{len(errors.found)} × attention(), host and device arrays: ")


@check(REVIEW, "compilation")
def _(gpu: Gpu) -> str:
    for dtype in DTYPES:
        x, y = (gpu.poisoned(1, 1, 64, 64, dtype=dtype) for _ in range(2))
        scale.launch(x, 1.0, stream=gpu.stream)
        causal_mask.launch(x, stream=gpu.stream)
        kv_append.launch(x, x, y, y, 0, stream=gpu.stream)
        confine.launch(x, x, y, stream=gpu.stream)
        for other in (gpu.poisoned(1, 1, 64, 64, dtype=dtype) for dtype in DTYPES):
            convert.launch(x, other, stream=gpu.stream)
            softmax.launch(x, other, stream=gpu.stream)
    wanted = {(s.kernel, *s.types.values()): s for s in loader.loaded()}.values()
    cold: list[float] = []
    cached: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for kernel in wanted:
            # A source that is new each time: compilers have caches of their own.
            source = f"{kernel.render(gpu.device.arch)}\nconstexpr long long NEW = {time.time_ns()};"
            program = Program(source, f"{kernel.name}.hip", headers=kernel.headers())
            for times in (cold, cached):
                start = time.perf_counter()
                program.compile(gpu.device.arch, DiskCache(Path(folder)))
                times.append((time.perf_counter() - start) * 1e3)
    names = {kernel.kernel for kernel in wanted}
    times_taken = f"{statistics.median(cold):.0f} ms each, {statistics.median(cached):.1f} ms from the disk cache"
    return f"{len(names)} kernels in their dtypes, {len(cold)} of {len(wanted)} compile: {times_taken}"


@check(REVIEW, "device to device")
def _(gpu: Gpu) -> str:
    made = copies = 0
    for dtype, causal in itertools.product(DTYPES, (False, True)):
        tensors = gpu.upload(*inputs(2, seq=8, heads=4, heads_kv=2, dtype=dtype))
        with KVCache(1, 2, 16, 2, 64, dtype=dtype, stream=gpu.stream) as held, bindings.record() as calls:
            for cache in (None, held, held):
                gpu.kernels.compute_attention(*tensors, causal=causal, cache=cache, stream=gpu.stream)
            made, copies = made + len(calls), copies + counted(calls, "hipMemcpy")
    assert made, "no call was recorded"
    assert not copies, f"{copies} of {made} calls in compute_attention are hipMemcpy*"
    return f"{copies} of {made} calls in compute_attention are hipMemcpy*, with and without a KV cache"


@check(REVIEW, "synchronisation points")
def _(gpu: Gpu) -> Evidence | str:
    if gpu.stream.sync_each:
        return Evidence("HIPATTN_SYNC=1 synchronises after every launch", status="not run")
    q, k, v = inputs(2, heads=4)
    tensors, out, runs, early, made = gpu.upload(q, k, v), gpu.poisoned(*q.shape), 4, 0, 0
    for _ in range(runs):
        with gpu.late(gpu.stream):
            with bindings.record() as calls:
                gpu.kernels.compute_attention(*tensors, out=out, stream=gpu.stream)
            early += not gpu.stream.done
            gpu.stream.sync()
            assert gpu.stream.done, "work is left in the stream after sync()"
        waiting = "Synchronize", "hipFree", "hipMalloc", "hipMemcpy"
        waits = [name for name, _ in calls if name.endswith(waiting)]
        assert not waits, f"compute_attention waits in {waits}"
        made += len(calls)
    Errors().attention(q, k, v, out.numpy())
    return f"0 of {made} calls in compute_attention wait; it returns before the work is done: {early} of {runs}"


@check(REVIEW, "stream order")
def _(gpu: Gpu) -> Evidence | str:
    q, k, v = gpu.upload(*inputs(2, heads=4))
    expected = gpu.kernels.compute_attention(q, k, v, stream=gpu.stream).numpy()
    rounds, differ = (3 if gpu.quick else 8), {True: 0, False: 0}
    with Stream(gpu.device) as before, Stream(gpu.device) as here, Stream(gpu.device) as after:
        for _, waits in itertools.product(range(rounds), differ):
            late_q, result = gpu.poisoned(*q.shape), gpu.poisoned(*q.shape)
            with gpu.late(before):
                convert.launch(q, late_q, stream=before)
                if waits:
                    here.wait(before)
                out = gpu.kernels.compute_attention(late_q, k, v, stream=here)
                if waits:
                    after.wait(here)
                convert.launch(out, result, stream=after)
                differ[waits] += not np.array_equal(result.numpy(stream=after), expected)
            gpu.device.sync()
    assert not differ[True], f"{differ[True]} of {rounds} results differ when a stream is late"
    if not differ[False]:
        return Evidence(f"{rounds} results without waits are right too: nothing is late here", status="not run")
    return f"over three streams, the first late: 0 of {rounds} results differ, without waits {differ[False]}"


@check(REVIEW, "speed-up over the CPU")
def _(gpu: Gpu) -> Evidence:
    batch, heads, seq = (1, 4, 128) if gpu.small else (4, 16, 1024)
    q, k, v = (np.ascontiguousarray(array.swapaxes(1, 2)) for array in inputs(batch, seq, heads=heads))
    tensors, out = gpu.upload(q, k, v), gpu.poisoned(*q.shape)
    gpu_times, cpu_times = [], []
    for _ in range(5):
        start = gpu.stream.record()
        gpu.kernels.compute_attention(*tensors, layout="bhsd", out=out, stream=gpu.stream)
        end = gpu.stream.record()
        end.sync()
        gpu_times.append(end - start)
        before = time.perf_counter()
        expected = numpy_attention(q, k, v)
        cpu_times.append((time.perf_counter() - before) * 1e3)
    Errors().add("out", out.numpy(), expected, 1e-3)
    on_gpu, on_cpu = statistics.median(gpu_times[1:]), statistics.median(cpu_times[1:])  # without the first
    figures = f"{on_cpu / on_gpu:.2g}×: {on_gpu:.3g} ms, NumPy {on_cpu:.3g} ms, float32 {list(q.shape)}"
    if gpu.small:
        why = "the device is simulated" if gpu.device.simulated else "--quick shapes"
        return Evidence(f"{figures}; meaningless: {why}", status="not run")
    assert on_gpu < on_cpu, f"slower than NumPy: {figures}"
    return Evidence(figures)


def numpy_attention(q: Any, k: Any, v: Any) -> Any:
    """Compute attention over [batch, heads, seq, dim] as NumPy users write it, in the arrays' dtype."""
    scores = q @ k.swapaxes(2, 3)
    scores *= np.float32(1 / math.sqrt(q.shape[3]))
    scores -= scores.max(axis=3, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=3, keepdims=True)
    return scores @ v


# ---- each stage, in each dtype ----

STAGES = "Stages, against float64"


@check(STAGES, "QKᵀ, through hipBLAS")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype in DTYPES:
        q, k, _ = (array.swapaxes(1, 2) for array in inputs(2, seq_k=47, heads=4, heads_kv=2, dtype=dtype))
        tensors = [*gpu.upload(q, k), gpu.poisoned(2, 4, 33, 47)]
        gpu.kernels.compute_qk_t(*tensors, stream=gpu.stream)
        expected = q.astype(np.float64) @ np.repeat(k.astype(np.float64), 2, axis=1).swapaxes(2, 3)
        errors.add(dtype.name, tensors[2].numpy(), expected, FLOOR[FLOAT32])
    return errors.evidence()


@check(STAGES, "scale")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype in DTYPES:
        before = np.random.default_rng(0).standard_normal((3, 1027)).astype(dtype)
        (scores,) = gpu.upload(before)
        gpu.kernels.scale_inplace(scores, 0.3, stream=gpu.stream)
        expected = before.astype(np.float64) * 0.3
        errors.add(dtype.name, scores.numpy(), expected, FLOOR[dtype])
    return errors.evidence()


@check(STAGES, "softmax")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype, columns in itertools.product(DTYPES, (1, 37, 1000, 3000 if gpu.quick else 40000)):
        before = 4 * np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
        before[1] = -np.inf  # a query that sees no key
        scores, weights, lse = *gpu.upload(before), gpu.poisoned(3, columns, dtype=dtype), gpu.poisoned(3)
        gpu.kernels.compute_softmax(scores, weights, lse=lse, stream=gpu.stream)
        expected, expected_lse = reference.softmax_rows(before.astype(np.float64))
        errors.add(dtype.name, weights.numpy(), expected, FLOOR[dtype], f", {columns} columns")
        Errors().lse("LSE", lse.numpy(), expected_lse, f", {columns} columns")
    return errors.evidence()


@check(STAGES, "· V, through hipBLAS")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype in DTYPES:
        v = inputs(2, seq_k=47, heads=4, heads_kv=2, dtype=dtype)[2].swapaxes(1, 2)
        weights = np.random.default_rng(1).dirichlet(np.ones(47), (2, 4, 33)).astype(dtype)
        tensors = [*gpu.upload(weights, v), gpu.poisoned(2, 4, 33, 64, dtype=dtype)]
        gpu.kernels.compute_attention_weighted_v(*tensors, stream=gpu.stream)
        expected = weights.astype(np.float64) @ np.repeat(v.astype(np.float64), 2, axis=1)
        errors.add(dtype.name, tensors[2].numpy(), expected, FLOOR[dtype])
    return errors.evidence()


# ---- attention, shape by shape ----

ATTENTION = "Attention, against float64"

SHAPES: dict[str, Sequence[dict[str, Any]]] = {
    "several heads": [{"heads": 3}, {"heads": 8, "dim": 32}],
    "batch > 1": [{"batch": 2}, {"batch": 5, "seq": 7}],
    "shared key heads (GQA, MQA)": [{"heads": 6, "heads_kv": 2}, {"heads": 4, "heads_kv": 1, "batch": 2}],
    "seq_q ≠ seq_k": [{"seq": 1, "seq_k": 40}, {"seq": 5, "seq_k": 33}],
    "causal rows that see no key": [{"seq": 33, "seq_k": 5}, {"seq": 9, "seq_k": 1, "heads": 3}],
    "odd sizes of a head": [{"dim": 1}, {"dim": 3}, {"dim": 40}, {"dim": 127}, {"dim": 80, "value_dim": 24}],
    "empty sequences": [{"seq": 0, "seq_k": 4}, {"seq": 4, "seq_k": 0}, {"batch": 0}],
    **{f"length {length}": [{"seq": length, "heads": 1}] for length in (1, 31, 64, 257, 1000)},
}


def check_shapes(name: str, shapes: Sequence[dict[str, Any]]) -> None:
    """Make shapes a row of the report: in each dtype, causal and not."""

    @check(ATTENTION, name)
    def _(gpu: Gpu) -> Evidence:
        if gpu.quick and max(shape.get("seq", 0) for shape in shapes) > 300:
            return Evidence("--quick", status="not run")
        errors = Errors()
        for shape, dtype, causal in itertools.product(shapes, DTYPES, (False, True)):
            q, k, v = inputs(**shape, dtype=dtype)
            errors.attention(q, k, v, *gpu.attend(q, k, v, causal=causal), causal=causal)
        return errors.evidence(f"{len(errors.found)} runs: ")


for _name, _shapes in SHAPES.items():
    check_shapes(_name, _shapes)


@check(ATTENTION, "strided views")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype in DTYPES:
        packed = np.random.default_rng(0).standard_normal((2, 33, 3, 4, 64)).astype(dtype)
        (tensor,) = gpu.upload(packed)
        out = gpu.kernels.compute_attention(*(tensor[:, :, i] for i in range(3)), stream=gpu.stream)
        q, k, v = (packed[:, :, i] for i in range(3))
        errors.attention(q, k, v, out.numpy())
    return errors.evidence("q, k, v side by side in one tensor: ")


@check(ATTENTION, "NaN stays in its rows")
def _(gpu: Gpu) -> str:
    reached = total = 0
    for dtype in DTYPES:
        q, k, v = inputs(dtype=dtype)
        q[0, 3, 0, 5], k[0, 29, 1, 0], v[0, 20, 0, 7] = np.nan, np.nan, np.nan
        out, lse = gpu.attend(q, k, v, causal=True)
        Errors().attention(q, k, v, out, lse, causal=True)
        reached, total = reached + int(np.isnan(out).sum()), total + out.size
    return f"one in each of q, k, v: {reached} of {total} outputs are NaN, those that are in the reference"


@check(ATTENTION, "log-sum-exp")
def _(gpu: Gpu) -> Evidence:
    errors = Errors()
    for dtype, (seq, seq_k) in itertools.product(DTYPES, ((33, 33), (5, 70), (33, 5))):
        q, k, v = inputs(2, seq, seq_k, heads=4, heads_kv=2, dtype=dtype)
        expected = reference.attention(q, k, v, causal=True, return_lse=True)[1]
        errors.lse(dtype.name, gpu.attend(q, k, v, causal=True)[1], expected)
    return errors.evidence()


def in_chunks(gpu: Gpu, q: Any, k: Any, v: Any, chunks: Sequence[int]) -> Any:
    """Return causal attention computed chunk by chunk with a KV cache."""
    batch, tokens, heads_kv, dim = k.shape
    parts = []
    with KVCache(1, batch, tokens, heads_kv, dim, dtype=q.dtype, stream=gpu.stream) as held:
        for end, size in zip(itertools.accumulate(chunks), chunks, strict=True):
            chunk = gpu.upload(*(array[:, end - size : end] for array in (q, k, v)))
            out = gpu.kernels.compute_attention(*chunk, causal=True, cache=held, stream=gpu.stream)
            parts.append(out.numpy())
    return np.concatenate(parts, axis=1)


@check(ATTENTION, "KV cache: chunks as one pass")
def _(gpu: Gpu) -> Evidence:
    errors, chunks = Errors(), (1, 7, 16, 1, 1, 14)
    for dtype in DTYPES:
        q, k, v = inputs(2, sum(chunks), heads=4, heads_kv=2, dtype=dtype)
        errors.attention(q, k, v, in_chunks(gpu, q, k, v, chunks), causal=True)
    return errors.evidence(f"{' + '.join(map(str, chunks))} tokens: ")


@check(ATTENTION, "KV cache: full, reset, used again")
def _(gpu: Gpu) -> str:
    q, k, v = gpu.upload(*inputs(seq=8))
    with KVCache(2, 1, 8, 2, 64, dtype=FLOAT32, stream=gpu.stream) as held:

        def attend() -> Any:
            options: Any = {"causal": True, "cache": held, "layer": 1, "stream": gpu.stream}
            return gpu.kernels.compute_attention(q, k, v, **options).numpy()

        first, refused = attend(), False
        try:
            attend()
        except hipattn.CacheFullError:
            refused = True
        assert refused, "a full cache took 8 more tokens"
        assert held.length(1) == 8, f"after refusing more, the cache holds {held.length(1)} of 8 tokens"
        held.reset()
        differ = int((attend() != first).sum())
    assert not differ, f"{differ} of {first.size} values differ after reset"
    return f"refused 8 tokens beyond 8 of 8, which stayed; after reset {differ} of {first.size} values differ"


# ---- the whole run, which only its end can tell ----


RUN = "Run"


@check(RUN, "GPU path really used")
def _(gpu: Gpu) -> str:
    launches, products = counted(gpu.calls, "hipModuleLaunchKernel"), counted(gpu.calls, "hipblasGemm")
    counts = gpu.kernels.fallbacks + fallback.counts
    fallbacks = counts.total()
    assert min(launches, products) > 0, f"{launches} launches, {products} hipBLAS products"
    assert not fallbacks, f"stages that fell back to the CPU: {dict(counts)}"
    text = f"this run: {launches} launches, {products} hipBLAS products, {fallbacks} stages fell back to the CPU"
    return f"{text}; {injected_failure(gpu)}" if gpu.device.simulated else text


def injected_failure(gpu: Gpu) -> str:
    """Make one launch fail where that falls back, so that a fallback is known to be seen: counted and logged."""
    q, k, v = inputs()
    tensors, logger, seen = gpu.upload(q, k, v), logging.getLogger("hipattn"), logging.handlers.BufferingHandler(99)
    with mock.patch.dict(os.environ, HIPATTN_FALLBACK="cpu"), HipAttentionKernels(gpu.device) as kernels:
        logger.addHandler(seen)
        try:
            with control.failing("hipModuleLaunchKernel:1"):
                out = kernels.compute_attention(*tensors, causal=True, stream=gpu.stream).numpy()
        finally:
            logger.removeHandler(seen)
    assert kernels.fallbacks == {"compute_softmax": 1}, f"a failed launch is counted as {dict(kernels.fallbacks)}"
    assert len(seen.buffer) == 1, f"a failed launch is logged {len(seen.buffer)} times"
    errors = Errors()
    errors.attention(q, k, v, out, causal=True)
    return errors.evidence("with one launch made to fail 1, logged once, and the result right: ").text
