"""How ``bench.py`` times: jobs of several contenders in turn, by device events, medians of several samples."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from hipattn import Event, Graph, Stream

__all__ = [
    "Absent",
    "Clock",
    "HipClock",
    "HipGraphClock",
    "HostClock",
    "Job",
    "Result",
    "TorchClock",
    "TorchGraphClock",
    "WallClock",
    "measure",
]

SPAN = 0.02  # seconds of a sample, so that what an event costs, and the first launch's delay, vanish
SAMPLES = 7
PATIENCE = 3.0  # seconds for all samples of one job, but for the first

Result = dict[str, Any]


class Absent(Exception):  # noqa: N818
    """A contender that is not here. The message says why."""


class Clock(Protocol):
    """Returns the seconds that a call takes, as the mean of `count` calls in a row: call(0), call(1), ..."""

    def __call__(self, call: Callable[[int], Any], count: int) -> float:
        """Call, and return the mean."""
        ...


class HipClock:
    """The device's time, between two events in a stream of hipattn."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __call__(self, call: Callable[[int], Any], count: int) -> float:  # noqa: D102
        with Event(self.stream.device) as start, Event(self.stream.device) as end:
            self.stream.record(start)
            for i in range(count):
                call(i)
            self.stream.record(end)
            end.sync()
            return (end - start) / 1e3 / count


class TorchClock:
    """The device's time, between two events in torch's current stream."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def __call__(self, call: Callable[[int], Any], count: int) -> float:  # noqa: D102
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for i in range(count):
            call(i)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / count


def _captured(calls: int, replay: Callable[[], Any], clock: Clock, count: int) -> float:
    """Return the seconds of one of the `calls` in a graph, replayed until at least `count` were made."""
    return clock(lambda _: replay(), -(-count // calls)) / calls


class HipGraphClock:
    """The device's time of calls in a graph, as generation replays them: without the host's time for each.

    Parameters
    ----------
    stream
    period
        How many calls go through all sets of inputs.
    """

    LEAST = 16  # calls in a graph, so that what a replay costs vanishes

    def __init__(self, stream: Stream, period: int) -> None:
        self.stream = stream
        self.calls = period * -(-self.LEAST // period)
        self.graph: Graph | None = None

    def __call__(self, call: Callable[[int], Any], count: int) -> float:  # noqa: D102
        calls = self.calls  # the graph keeps `work`, which must not keep the clock

        def work() -> None:
            for i in range(calls):
                call(i)

        if self.graph is None:
            work()  # kernels are loaded, and memory is allocated, outside a graph
            self.graph = Graph(self.stream, work)
        return _captured(calls, self.graph.launch, HipClock(self.stream), count)


class TorchGraphClock:
    """The same for torch's calls."""

    def __init__(self, torch: Any, period: int) -> None:
        self.torch = torch
        self.calls = period * -(-HipGraphClock.LEAST // period)
        self.graph: Any = None

    def __call__(self, call: Callable[[int], Any], count: int) -> float:  # noqa: D102
        if self.graph is None:
            call(0)
            self.torch.cuda.synchronize()
            self.graph = self.torch.cuda.CUDAGraph()
            with self.torch.cuda.graph(self.graph):
                for i in range(self.calls):
                    call(i)
        return _captured(self.calls, self.graph.replay, TorchClock(self.torch), count)


class WallClock:
    """The host's time, for work that is done when a call returns."""

    def __call__(self, call: Callable[[int], Any], count: int) -> float:  # noqa: D102
        start = time.perf_counter()
        for i in range(count):
            call(i)
        return (time.perf_counter() - start) / count


class HostClock:
    """The host's time until a call returns, though the device may still work."""

    # The driver's queue takes so many launches before a call waits for the device.
    MOST = 100

    def __init__(self, sync: Callable[[], Any]) -> None:
        self.sync = sync

    def __call__(self, call: Callable[[int], Any], count: int) -> float:  # noqa: D102
        self.sync()
        count = min(count, self.MOST)
        start = time.perf_counter()
        for i in range(count):
            call(i)
        seconds = time.perf_counter() - start
        self.sync()
        return seconds / count


class Job(NamedTuple):
    """A contender's work, ready to run: ``call(i)`` does it once, on the i-th of its sets of inputs."""

    call: Callable[[int], Any]
    clock: Clock
    compiles: bool = True  # so that the first call does not count, however long it takes


def measure(jobs: Mapping[str, Callable[[], Job]], *, quick: bool = False) -> dict[str, Result]:
    """Time contenders in turn (A B C A B C ...), so that what the chip's clock does befalls all of them.

    Parameters
    ----------
    jobs
        Contender → makes its job. It, or the job, may raise: that is the contender's result, and the others go on.
    quick
        Take few and short samples.

    Returns
    -------
    results
        Contender → "seconds" (the median) and "samples", or "absent" or "error" with the reason.
    """
    span, most = (0.0, 2) if quick else (SPAN, SAMPLES)
    results: dict[str, Result] = {}
    plans: dict[str, tuple[Job, int, int]] = {}
    for name, make in jobs.items():
        with _Caught(results, name):
            job = make()
            seconds = job.clock(job.call, 1)
            results[name] = {"samples": [seconds]}
            if job.compiles or seconds < PATIENCE:
                # Twice: the first tells how many calls fill a sample, the second is warm and corrects that.
                seconds = job.clock(job.call, 3)
                seconds = job.clock(job.call, _calls(span, seconds))
                results[name]["samples"].clear()
                samples = max(1, min(most, math.floor(PATIENCE / max(seconds, span))))
                plans[name] = job, _calls(span, seconds), samples
    for turn in range(most):
        for name, (job, calls, samples) in plans.items():
            if turn < samples and "samples" in results[name]:
                with _Caught(results, name):
                    results[name]["samples"].append(job.clock(job.call, calls))
    for result in results.values():
        if "samples" in result:
            result["seconds"] = statistics.median(result["samples"])
    return results


def _calls(span: float, seconds: float) -> int:
    return max(1, math.ceil(span / max(seconds, 1e-6)))


class _Caught:
    """Makes an exception the contender's result."""

    def __init__(self, results: dict[str, Result], name: str) -> None:
        self.results, self.name = results, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> bool:
        if isinstance(error, Exception):
            lines = str(error).strip().splitlines() or [""]
            said = lines[0] if isinstance(error, Absent) else f"{type(error).__name__}: {lines[0]}"
            self.results[self.name] = {"absent" if isinstance(error, Absent) else "error": said[:300]}
            return True
        return False
