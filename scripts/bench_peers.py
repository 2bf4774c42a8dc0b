"""The contenders of ``bench.py`` that compute attention: hipattn's methods, NumPy, and torch's SDPA back ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from bench_machine import Machine
from bench_timing import Absent, HipGraphClock, HostClock, Job, TorchClock, TorchGraphClock, WallClock

import hipattn
from hipattn import DeviceTensor

__all__ = [
    "TORCH",
    "Attention",
    "Contender",
    "Inputs",
    "Timing",
    "decode",
    "flash",
    "fused",
    "numpy",
    "paged_decode",
    "staged",
    "torch_sdpa",
]

PAGE_SIZE = 16


class Inputs:
    """Several sets of q, k, v, to go through in turn."""

    def __init__(self, sets: Sequence[Sequence[DeviceTensor]]) -> None:
        self.sets = sets
        self._torch: list[list[Any]] = []

    def torch(self, torch: Any) -> list[list[Any]]:
        """Return the same numbers as tensors of torch, [batch, heads, seq, dim] in memory too: its own layout."""
        if not self._torch:
            self._torch = [[torch.from_dlpack(x).transpose(1, 2).contiguous() for x in item] for item in self.sets]
            torch.cuda.synchronize()
        return self._torch


@dataclass(frozen=True)
class Attention:
    """A problem: q [batch, seq_q, heads, dim], k and v [batch, seq_k, heads_kv, dim]."""

    batch: int
    seq_q: int
    seq_k: int
    heads: int
    heads_kv: int
    dim: int
    dtype: str
    causal: bool

    @property
    def flops(self) -> float:
        """Of the two products, without what a causal mask hides."""
        return 4.0 * self.batch * self.heads * self.seq_q * self.seq_k * self.dim / (2 if self.causal else 1)

    @property
    def nbytes(self) -> int:
        """Of q, k, v and the output, each moved once."""
        rows = 2 * self.seq_q * self.heads + 2 * self.seq_k * self.heads_kv
        return self.batch * rows * self.dim * (4 if self.dtype == "float32" else 2)

    def inputs(self, machine: Machine) -> Inputs:
        """Return several sets of q, k, v."""
        shapes = ((self.batch, self.seq_q, self.heads, self.dim),) + 2 * (
            (self.batch, self.seq_k, self.heads_kv, self.dim),
        )
        count = machine.sets(self.nbytes)
        return Inputs([[machine.random(x, self.dtype, 3 * i + j) for j, x in enumerate(shapes)] for i in range(count)])


Timing = Literal["calls", "graph", "host"]
"""What is timed: the device's work call by call, or as replays of a graph; or the host's part of a call."""

Contender = Callable[[Machine, Attention, Inputs, Timing], Job]
"""Makes the job for a problem and its inputs."""


# ---- hipattn ----


def _hipattn(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing, compute: Callable[..., Any]) -> Job:
    sets, stream = inputs.sets, machine.stream
    out = DeviceTensor.empty(sets[0][0].shape, problem.dtype, stream=stream)
    options = {"causal": problem.causal, "out": out, "stream": stream}
    clock = {"calls": machine.clock, "graph": HipGraphClock(stream, len(sets)), "host": HostClock(stream.sync)}[timing]
    return Job(lambda i: compute(*sets[i % len(sets)], **options), clock)


def staged(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing = "calls") -> Job:
    """Run the pipeline of hipBLAS and hipattn's kernels."""
    return _hipattn(machine, problem, inputs, timing, machine.kernels.compute_attention)


def fused(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing = "calls") -> Job:
    """Call ``hipattn.attention``, which chooses."""
    return _hipattn(machine, problem, inputs, timing, hipattn.attention)


def flash(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing = "calls") -> Job:
    """Call ``hipattn.attention`` for one fused kernel."""
    if "method" not in inspect.signature(hipattn.attention).parameters:
        raise Absent("hipattn.attention has no parameter `method` in this version")

    def compute(*tensors: Any, **options: Any) -> Any:
        return hipattn.attention(*tensors, method="flash", **options)

    return _hipattn(machine, problem, inputs, timing, compute)


def decode(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing = "calls") -> Job:
    """Call ``hipattn.attention_decode`` over caches in one piece."""
    return _hipattn(machine, problem, inputs, timing, hipattn.attention_decode)


def paged_decode(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing = "calls") -> Job:
    """Call ``hipattn.attention_decode`` over the same memory as pages of 16 rows, in no order."""
    pages = problem.seq_k // PAGE_SIZE
    order = np.random.default_rng(0).permutation(problem.batch * pages).reshape(problem.batch, pages)
    table = DeviceTensor.from_numpy(order.astype(np.int32), stream=machine.stream)

    def compute(q: DeviceTensor, k: DeviceTensor, v: DeviceTensor, **options: Any) -> Any:
        return hipattn.attention_decode(q, k, v, block_table=table, **options)

    pools = [
        [q, *(x.reshape(problem.batch * pages, PAGE_SIZE, *x.shape[2:]) for x in caches)] for q, *caches in inputs.sets
    ]
    return _hipattn(machine, problem, Inputs(pools), timing, compute)


# ---- NumPy ----


def numpy(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing = "calls") -> Job:  # noqa: ARG001
    """Compute in float32 on the host: its BLAS uses all cores, the rest one."""
    # [batch, heads, seq, dim], as its products take them.
    sets = [[np.ascontiguousarray(x.numpy().astype(np.float32).swapaxes(1, 2)) for x in item] for item in inputs.sets]
    group, scale = problem.heads // problem.heads_kv, np.float32(problem.dim**-0.5)
    after = np.arange(problem.seq_k) > np.arange(problem.seq_q)[:, None] + problem.seq_k - problem.seq_q
    hidden = np.where(after, np.float32(-np.inf), np.float32(0))

    def compute(i: int) -> np.ndarray[Any, Any]:
        q, k, v = sets[i % len(sets)]
        if group > 1:
            k, v = (np.repeat(x, group, axis=1) for x in (k, v))
        scores = q @ k.swapaxes(2, 3)
        scores *= scale
        if problem.causal:
            scores += hidden
        scores -= scores.max(axis=3, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=3, keepdims=True)
        return scores @ v

    return Job(compute, WallClock(), compiles=False)


# ---- torch ----

TORCH = {
    "torch flash": "FLASH_ATTENTION",
    "torch cuDNN": "CUDNN_ATTENTION",
    "torch mem-efficient": "EFFICIENT_ATTENTION",
    "torch math": "MATH",
}


def torch_sdpa(backend: str | None) -> Contender:
    """Return the contender for one of torch's back ends; None: for what torch chooses."""

    def make(machine: Machine, problem: Attention, inputs: Inputs, timing: Timing = "calls") -> Job:
        try:
            import torch
            from torch.nn.attention import SDPBackend, sdpa_kernel
        except ImportError as error:
            raise Absent(f"torch is not installed ({error})") from None
        if machine.device.simulated:
            raise Absent("the GPU is simulated, and torch knows nothing of it")
        if not torch.cuda.is_available():
            raise Absent(f"torch {torch.__version__} finds no GPU")
        if backend is not None and backend not in SDPBackend.__members__:
            raise Absent(f"torch {torch.__version__} has no {backend}")
        sets = inputs.torch(torch)
        # Top-left alignment is ours where the lengths agree; a single query sees every key.
        options: dict[str, Any] = {"is_causal": problem.causal}
        if problem.heads != problem.heads_kv:
            options["enable_gqa"] = True
        attention = torch.nn.functional.scaled_dot_product_attention

        def compute(i: int) -> Any:
            return attention(*sets[i % len(sets)], **options)

        clocks = {
            "calls": TorchClock(torch),
            "graph": TorchGraphClock(torch, len(sets)),
            "host": HostClock(torch.cuda.synchronize),
        }
        clock = clocks[timing]
        if backend is None:
            return Job(compute, clock)
        chosen = SDPBackend.__members__[backend]

        def timed(call: Callable[[int], Any], count: int) -> float:
            with sdpa_kernel(chosen):  # entered once a sample: it costs the host more than a call
                return clock(call, count)

        return Job(compute, timed)

    return make
