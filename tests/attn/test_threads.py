"""attention() from several threads at once, on one device."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import hipattn
from hipattn import Device, Stream
from hipattn.attn import reference
from hipattn.runtime import bindings
from tests.helpers.inputs import qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import DTYPES, attention_bound

THREADS = 4


@pytest.mark.parametrize("own_stream", [True, False], ids=["a stream each", "the default stream"])
def test_from_threads(device: Device, own_stream: bool) -> None:
    start = threading.Barrier(THREADS)

    def work(number: int) -> None:
        q, k, v = qkv(seq_q=9 + 8 * number, heads_kv=2, dtype=DTYPES[number % len(DTYPES)], seed=number)
        expected, bound = reference.attention(q, k, v, causal=True), attention_bound(q, k, v, causal=True)
        with Stream(device) if own_stream else nullcontext(device.default_stream) as stream:
            tensors = upload(stream, q, k, v)
            start.wait(60)
            for turn in range(6):
                if turn % 2:
                    out = hipattn.attention(*tensors, causal=True, stream=stream).numpy()
                else:
                    out = hipattn.attention(q, k, v, causal=True, stream=stream)
                assert_close(out, expected, atol=bound, name=f"thread {number}, turn {turn}")
            hipattn.free_scratch()

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, number) for number in range(THREADS)]:
            done.result()


def test_a_thread_s_error_is_its_own(device: Device) -> None:
    q, k, v = qkv()

    def work(number: int) -> None:
        if number % 2:
            with pytest.raises(hipattn.ArgumentError, match="k has shape"):
                hipattn.attention(q, k[..., :-1], v, stream=device.default_stream)
        else:
            out = hipattn.attention(q, k, v, stream=device.default_stream)
            assert np.isfinite(out).all()
            hipattn.free_scratch()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(4 * THREADS)))


def test_a_launch_within_a_launch(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal handler makes one, or a thread: each has its own arguments."""
    arrays = [qkv(seed=seed) for seed in (0, 1)]
    tensors = [upload(stream, *each) for each in arrays]
    results = [hipattn.attention(*tensors[1], stream=stream)]  # which loads the kernel
    launch = bindings.hip.hipModuleLaunchKernel

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(hip, name)

        @staticmethod
        def hipModuleLaunchKernel(*arguments: Any) -> Any:  # noqa: N802
            monkeypatch.undo()
            results.append(hipattn.attention(*tensors[1], stream=stream))
            return launch(*arguments)

    hip = bindings.hip
    monkeypatch.setattr(bindings, "hip", Interrupted())
    results.append(hipattn.attention(*tensors[0], stream=stream))
    for result, number in zip(results, (1, 1, 0), strict=True):
        expected = reference.attention(*arrays[number])
        assert_close(result.numpy(), expected, atol=attention_bound(*arrays[number]), name=f"arguments {number}")
