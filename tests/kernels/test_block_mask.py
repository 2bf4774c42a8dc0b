"""block_mask against NumPy: what a mask leaves of each tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hipattn import ArgumentError, CompileError, Device, DeviceTensor, MaskMod, Stream
from hipattn.kernels import block_mask
from hipattn.runtime import bindings

TABLE = np.random.default_rng(0).integers(0, 5, 4000).astype(np.int32)

# What is left: nothing, all, halves, the diagonal, something of every head and batch entry, one position.
MASKS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "none": ("false", lambda b, h, q, k: False, {}),
    "all": ("true", lambda b, h, q, k: True, {}),
    "causal": ("k <= q", lambda b, h, q, k: k <= q, {}),
    "documents": ("q / 48 == k / 48", lambda b, h, q, k: q // 48 == k // 48, {}),
    "heads": ("(q + k) % (h + 2 * b + 1) == 0", lambda b, h, q, k: (q + k) % (h + 2 * b + 1) == 0, {}),
    "one": ("q == 65 && k == 33 && h == 1", lambda b, h, q, k: (q == 65) & (k == 33) & (h == 1), {}),
    "all but one": ("!(q == 65 && k == 33)", lambda b, h, q, k: ~((q == 65) & (k == 33)), {}),
    "numbers": ("k * s < q + left", lambda b, h, q, k, s, left: k * s < q + left, {"s": 0.5, "left": 7}),
    "tensor": ("t[q] == t[1000 + k]", lambda b, h, q, k, t: t[q] == t[1000 + k], {"t": TABLE}),
}  # fmt: skip


def expected(function: Any, batch: int, heads: int, seq_q: int, seq_k: int, block_m: int, block_n: int) -> Any:
    tiles = np.zeros((batch, heads, -(-seq_q // block_m), -(-seq_k // block_n)), np.uint8)
    q, k = np.arange(seq_q)[:, None], np.arange(seq_k)[None, :]
    for b, h, i, j in np.ndindex(*tiles.shape):
        seen = np.broadcast_to(function(b, h, q, k), (seq_q, seq_k))
        tile = seen[i * block_m : (i + 1) * block_m, j * block_n : (j + 1) * block_n]
        tiles[b, h, i, j] = 2 if tile.all() else 1 if tile.any() else 0
    return tiles


def computed(stream: Stream, mask: MaskMod, *sizes: int) -> Any:
    batch, heads, seq_q, seq_k, block_m, block_n = sizes
    shape = (batch, heads, -(-seq_q // block_m), -(-seq_k // block_n))
    guard = 5
    whole = DeviceTensor.from_numpy(np.full(int(np.prod(shape)) + 2 * guard, 77, np.uint8), stream=stream)
    out = DeviceTensor(whole.buffer, shape, np.uint8, offset=guard)
    block_mask.launch(mask, *sizes, out, stream=stream)
    around = whole.numpy()
    assert (around[:guard] == 77).all()
    assert (around[len(around) - guard :] == 77).all()
    return out.numpy()


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("sizes", [(2, 3, 100, 70, 32, 16), (1, 2, 130, 65, 64, 32), (2, 1, 1, 70, 128, 64)], ids=str)
def test_equals_numpy(stream: Stream, name: str, sizes: tuple[int, ...]) -> None:
    expression, function, values = MASKS[name]
    mask = MaskMod(expression, python=function, **values)
    np.testing.assert_array_equal(computed(stream, mask, *sizes), expected(mask.on_host(), *sizes))


def test_tiles_of_odd_sizes(stream: Stream) -> None:
    sizes = (2, 2, 30, 41, 7, 5)  # 35 positions: fewer than a wave of 64, more than one of 32
    expression, function, _ = MASKS["causal"]
    np.testing.assert_array_equal(computed(stream, MaskMod(expression), *sizes), expected(function, *sizes))


def test_more_tiles_than_blocks(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_mask, "MAX_BLOCKS", 3)
    sizes = (2, 3, 100, 90, 8, 8)
    expression, function, _ = MASKS["heads"]
    np.testing.assert_array_equal(computed(stream, MaskMod(expression), *sizes), expected(function, *sizes))


@pytest.mark.parametrize("sizes", [(0, 2, 5, 5, 4, 4), (2, 0, 5, 5, 4, 4), (1, 1, 0, 5, 4, 4), (1, 1, 5, 0, 4, 4)])
def test_empty(stream: Stream, sizes: tuple[int, ...]) -> None:
    assert computed(stream, MaskMod("true"), *sizes).size == 0


def test_numbers_do_not_compile_the_kernel_again(stream: Stream) -> None:
    sizes = (1, 1, 40, 40, 16, 16)
    before = block_mask._kernel.cache_info().misses
    for left in (3, 17):
        mask = MaskMod("k < q + left", left=left)
        np.testing.assert_array_equal(
            computed(stream, mask, *sizes), expected(lambda b, h, q, k, left=left: k < q + left, *sizes)
        )
    assert block_mask._kernel.cache_info().misses - before <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": -1}, "heads is -1"),
        ({"block_m": 0}, "block_m is 0"),
        ({"block_n": 2.0}, "block_n is 2.0"),
        ({"seq_q": 33}, r"out is uint8 \(1, 2, 2, 4\), contiguous; it takes uint8 \(1, 2, 3, 4\)"),
    ],
)
def test_refuses(stream: Stream, changes: dict[str, Any], message: str) -> None:
    sizes = {"batch": 1, "heads": 2, "seq_q": 32, "seq_k": 64, "block_m": 16, "block_n": 16} | changes
    out = DeviceTensor.empty((1, 2, 2, 4), np.uint8, stream=stream)
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        block_mask.launch(MaskMod("true"), **sizes, out=out, stream=stream)
    assert not [name for name, _ in calls if "Launch" in name]


def test_refuses_other_outputs(stream: Stream) -> None:
    for out in (
        DeviceTensor.empty((1, 1, 2, 2), np.int32, stream=stream),
        DeviceTensor.empty((1, 1, 2, 4), np.uint8, stream=stream)[..., ::2],
    ):
        with pytest.raises(ArgumentError, match="out is"):
            block_mask.launch(MaskMod("true"), 1, 1, 32, 32, 16, 16, out, stream=stream)


def test_tensors_of_another_device_are_refused() -> None:
    if Device.count() < 2:
        pytest.skip("needs two devices")
    with Stream(Device(0)) as first, Stream(Device(1)) as second:
        mask = MaskMod("t[q] == t[k]", t=DeviceTensor.from_numpy(TABLE, stream=first))
        out = DeviceTensor.empty((1, 1, 2, 2), np.uint8, stream=second)
        with pytest.raises(ArgumentError, match="mask_mod's t is on device 0; the stream is on 1"):
            block_mask.launch(mask, 1, 1, 32, 32, 16, 16, out, stream=second)


def test_an_error_is_shown_with_the_user_s_line(stream: Stream) -> None:
    out = DeviceTensor.empty((1, 1, 2, 2), np.uint8, stream=stream)
    with pytest.raises(CompileError, match=r"mask_mod[:(]2\b(.|\n)*wrong") as raised:
        block_mask.launch(MaskMod("q < k &&\n  wrong < 3"), 1, 1, 32, 32, 16, 16, out, stream=stream)
    assert "wrong < 3" in raised.value.log
