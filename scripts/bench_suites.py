"""The suites of ``bench.py``: which problems are timed, by which contenders, against which ceiling."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_machine import Machine
from bench_peers import (
    TORCH,
    Attention,
    Contender,
    Timing,
    decode,
    flash,
    fused,
    numpy,
    paged_decode,
    staged,
    torch_sdpa,
)
from bench_timing import HostClock, Job, Result, WallClock, measure

from hipattn import DeviceTensor, Stream
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.loader import load
from hipattn.compiler.program import Program
from hipattn.compiler.specialise import Specialisation
from hipattn.kernels import FAMILIES, causal_mask, convert, kv_append, scale, softmax
from hipattn.tensor import as_dtype

__all__ = ["SUITES", "Case", "Suite"]

Jobs = Mapping[str, Callable[[], Job]]  # contender → makes its job


@dataclass(frozen=True)
class Case:
    """A row of a suite's table."""

    what: Mapping[str, Any]  # column → value
    make: Callable[[Machine], Jobs]  # uploads the inputs
    work: float = 0.0  # FLOP, or bytes that have to be moved; 0: only the time counts
    ceiling: str = ""  # a name that `Machine.ceiling` takes
    nbytes: int = 0  # of one set of inputs

    def run(self, machine: Machine) -> Result:
        """Time the contenders, if the inputs fit: some contenders copy them."""
        row: Result = {"what": dict(self.what), "work": self.work, "ceiling": self.ceiling, "results": {}}
        needs, free = 2.2 * self.nbytes * machine.sets(self.nbytes), machine.device.memory()[0]
        if needs > free:
            return row | {"skipped": f"needs {needs / 1e9:.1f} GB of device memory; {free / 1e9:.1f} GB are free"}
        return row | {"results": measure(self.make(machine), quick=machine.quick)}


@dataclass(frozen=True)
class Suite:
    """Cases that make a table."""

    title: str
    unit: str  # of `Case.work` in a second: "TFLOP/s", "TB/s", or ""
    dtypes: Sequence[str]  # where none are asked for
    cases: Callable[[Machine, Sequence[str]], Iterator[Case]]


# ---- attention ----

NAMES = {"tokens": "seq_q", "keys": "seq_k", "head_dim": "dim"}  # column → field, where they differ
BACKENDS = {name: torch_sdpa(backend) for name, backend in TORCH.items()}


def _attention(
    problem: Attention,
    contenders: Mapping[str, Contender],
    columns: str,
    *,
    ceiling: str = "",
    timing: Timing = "calls",
) -> Case:
    def make(machine: Machine) -> Jobs:
        inputs = problem.inputs(machine)

        def bound(contender: Contender) -> Callable[[], Job]:
            return lambda: contender(machine, problem, inputs, timing)

        return {name: bound(contender) for name, contender in contenders.items()}

    what = {column: getattr(problem, NAMES.get(column, column)) for column in columns.split()}
    work = 0.0 if timing == "host" else problem.nbytes if ceiling == "copy" else problem.flops
    return Case(what, make, work, ceiling, problem.nbytes)


# Batch, tokens, heads: the corners and the middle of 1 to 8, 128 to 4096, 8 to 32.
STAGED = (
    *((1, 128, 8), (1, 512, 8), (1, 2048, 8), (1, 4096, 8), (1, 128, 32), (1, 1024, 32), (1, 4096, 32)),
    *((2, 256, 16), (2, 1024, 16), (4, 512, 16), (4, 1024, 8), (4, 2048, 16)),
    *((8, 128, 8), (8, 4096, 8), (8, 128, 32), (8, 512, 32), (8, 2048, 32), (8, 4096, 32)),
)


def staged_cases(machine: Machine, dtypes: Sequence[str]) -> Iterator[Case]:
    """Causal, head_dim 64."""
    peers = ("torch mem-efficient", "torch math")
    contenders = {"hipattn staged": staged, "NumPy": numpy, **{name: BACKENDS[name] for name in peers}}
    for dtype in dtypes:
        for batch, tokens, heads in ((1, 16, 2), (2, 33, 1)) if machine.quick else STAGED:
            problem = Attention(batch, tokens, tokens, heads, heads, 64, dtype, causal=True)
            yield _attention(problem, contenders, "dtype batch tokens heads", ceiling=f"GEMM {dtype}")


def flash_cases(machine: Machine, dtypes: Sequence[str]) -> Iterator[Case]:
    """Batch · tokens = 16384 and heads · head_dim = 2048: the same work but for the length."""
    contenders = {"hipattn flash": flash, **BACKENDS}
    total, width = (64, 128) if machine.quick else (16384, 2048)
    for dtype, dim, causal in itertools.product(dtypes, (64, 128), (False, True)):
        for tokens in (32,) if machine.quick else (1024, 2048, 4096, 8192, 16384):
            heads = width // dim
            problem = Attention(total // tokens, tokens, tokens, heads, heads, dim, dtype, causal)
            yield _attention(problem, contenders, "dtype head_dim causal tokens batch", ceiling=f"GEMM {dtype}")


def decode_cases(machine: Machine, dtypes: Sequence[str]) -> Iterator[Case]:
    """One query for each of a batch of sequences, head_dim 128, replayed from graphs as generation does."""
    peers = ("torch flash", "torch cuDNN")
    contenders = {"hipattn": decode, "hipattn paged": paged_decode, **{name: BACKENDS[name] for name in peers}}
    batches, lengths = ((2,), (64,)) if machine.quick else ((1, 8, 32, 64), (2048, 8192, 32768, 131072))
    for dtype, kv, batch, keys in itertools.product(dtypes, (8, 32), batches, lengths):
        heads, kv = (2, kv // 16) if machine.quick else (32, kv)
        problem = Attention(batch, 1, keys, heads, kv or 1, 128, dtype, causal=False)
        yield _attention(problem, contenders, "dtype heads heads_kv batch keys", ceiling="copy", timing="graph")


def host_cases(machine: Machine, dtypes: Sequence[str]) -> Iterator[Case]:
    """Warm calls on shapes that the device has done before the host has queued the next."""
    contenders = {
        "hipattn": fused,
        "hipattn staged": staged,
        "torch SDPA": torch_sdpa(None),
        **{name: BACKENDS[name] for name in ("torch flash", "torch cuDNN")},
    }
    shapes = ((8, 8, 2, 64, True),) if machine.quick else ((128, 128, 8, 64, True), (1, 1024, 8, 128, False))
    for dtype in dtypes:
        for seq_q, seq_k, heads, dim, causal in shapes:
            problem = Attention(1, seq_q, seq_k, heads, heads, dim, dtype, causal)
            yield _attention(problem, contenders, "dtype tokens keys heads head_dim causal", timing="host")
        yield _launch(dtype)


def _launch(dtype: str) -> Case:
    """One launch, for comparison: what any kernel costs the host."""

    def make(machine: Machine) -> Jobs:
        x, stream = machine.random((8,), dtype), machine.stream
        return {"hipattn": lambda: Job(lambda _: scale.launch(x, 1.0, stream=stream), HostClock(stream.sync))}

    return Case({"dtype": dtype, "tokens": "one launch"}, make)


# ---- kernels that each element passes through once ----

Launch = Callable[..., None]


def _kernel(name: str, shape: str, launch: Launch, tensors: Sequence[tuple[Sequence[int], str]], work: int) -> Case:
    """Return the case of a kernel over tensors of these shapes and dtypes."""

    def make(machine: Machine) -> Jobs:
        count = machine.sets(nbytes)
        sets = [[machine.random(*tensor, seed) for seed, tensor in enumerate(tensors)] for _ in range(count)]
        return {"hipattn": lambda: Job(lambda i: launch(*sets[i % count], stream=machine.stream), machine.clock)}

    nbytes = sum(int(np.prod(shape)) * as_dtype(dtype).itemsize for shape, dtype in tensors)
    return Case({"kernel": name, "of": shape}, make, work, "copy", nbytes)


def kernel_cases(machine: Machine, dtypes: Sequence[str]) -> Iterator[Case]:
    """Work is the bytes that have to be read and written."""
    elements = 2**12 if machine.quick else 2**26  # 128 MiB in 16 bits

    def unit(x: DeviceTensor, *, stream: Stream) -> None:
        scale.launch(x, 1.0, stream=stream)  # 1, so that values stay normal

    def append(*tensors: DeviceTensor, stream: Stream) -> None:
        k, v, k_cache, v_cache = tensors
        kv_append.launch(k, v, k_cache, v_cache, 3, stream=stream)

    for dtype in dtypes:
        size = as_dtype(dtype).itemsize
        yield _kernel("scale", dtype, unit, [((elements,), dtype)], 2 * elements * size)
        side = 32 if machine.quick else 2048
        matrices, hidden = elements // side**2, side * (side - 1) // 2
        scores = ((matrices, side, side), dtype)
        yield _kernel(
            "causal_mask", f"{dtype}, {side} x {side}", causal_mask.launch, [scores], matrices * hidden * size
        )
        for columns in (64,) if machine.quick else (128, 1024, 4096, 16384, 65536):
            shape = elements // columns, columns
            tensors = [(shape, "float32"), (shape, dtype)]
            of = f"float32 to {dtype}, rows of {columns}"
            yield _kernel("softmax", of, softmax.launch, tensors, elements * (4 + size))
        tokens = elements // (8 * 8 * 128) or 1
        new, cache = ((8, tokens, 8, 128), dtype), ((8, tokens + 8, 8, 128), dtype)
        work = 4 * int(np.prod(new[0])) * size
        yield _kernel("kv_append", f"{dtype}, head_dim 128", append, [new, new, cache, cache], work)
    for source, to in itertools.permutations(dtypes, 2):
        work = elements * sum(as_dtype(dtype).itemsize for dtype in (source, to))
        yield _kernel("convert", f"{source} to {to}", convert.launch, [((elements,), source), ((elements,), to)], work)


# ---- compilation ----


def compile_cases(machine: Machine, dtypes: Sequence[str]) -> Iterator[Case]:  # noqa: ARG001
    """One kernel of each family."""
    for family in FAMILIES[:2] if machine.quick else FAMILIES:
        kernel = next(family.defaults(machine.device.arch), None)
        if kernel is not None:
            yield Case({"kernel": kernel.name}, _compilation(kernel))


def _compilation(kernel: Specialisation) -> Callable[[Machine], Jobs]:
    fresh = itertools.count()

    def make(machine: Machine) -> Jobs:
        arch, headers = machine.device.arch, kernel.headers()
        source, folder = kernel.render(arch), tempfile.TemporaryDirectory()
        disk = DiskCache(Path(folder.name))

        def cold() -> None:
            Program(f"{source}\n// {next(fresh)}", headers=headers).compile(arch)  # compilers have caches too

        def from_disk() -> None:
            assert folder  # which lives as long as this function
            Program(source, headers=headers).compile(arch, disk)

        def in_memory() -> None:
            load(kernel, machine.device)

        calls = {"cold": cold, "from disk": from_disk, "in memory": in_memory}

        def bound(call: Callable[[], None]) -> Callable[[], Job]:
            return lambda: Job(lambda _: call(), WallClock())

        return {name: bound(call) for name, call in calls.items()}

    return make


SUITES = {
    "staged": Suite("The staged pipeline; causal, head_dim 64", "TFLOP/s", ("float32",), staged_cases),
    "flash": Suite("Fused attention", "TFLOP/s", ("float16", "bfloat16", "float32"), flash_cases),
    "decode": Suite("One query a sequence, replayed from a graph; head_dim 128", "TB/s", ("float16",), decode_cases),
    "kernels": Suite("Kernels bound by memory", "TB/s", ("float32", "float16", "bfloat16"), kernel_cases),
    "host": Suite("The host's time for a warm call", "", ("float16",), host_cases),
    "compile": Suite("Compilation", "", ("float16",), compile_cases),
}
