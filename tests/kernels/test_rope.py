"""rope against float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import Device, DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import rope, rows
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded, same_bits
from tests.helpers.tolerance import DTYPES, EPSILON

FLOAT32, FLOAT16, _ = DTYPES
STYLES = rope.STYLES


def turned(
    x: NDArray,
    positions: NDArray,
    *,
    style: str,
    base: float = 10000.0,
    rotary_dim: int | None = None,
    factors: tuple[float, ...] | None = None,
) -> NDArray[np.float64]:
    """Return the formula in float64; `positions` is [batch, tokens]."""
    dim = x.shape[-1] if rotary_dim is None else rotary_dim
    out = x.astype(np.float64)
    places = np.arange(dim).reshape(-1, 2) if style == "interleaved" else np.arange(dim).reshape(2, -1).T
    frequencies = base ** (-np.arange(dim // 2) * 2 / max(dim, 1)) / (1.0 if factors is None else np.array(factors))
    angles = positions[:, :, None, None] * frequencies
    a, b = (out[..., places[:, side]] for side in (0, 1))
    out[..., places[:, 0]] = a * np.cos(angles) - b * np.sin(angles)
    out[..., places[:, 1]] = a * np.sin(angles) + b * np.cos(angles)
    return out


def close(found: NDArray, expected: NDArray, dtype: np.dtype) -> None:
    assert_close(found, expected, rtol=EPSILON[dtype] / 2, atol=4e-6)


@pytest.mark.parametrize("head_dim", [2, 6, 10, 16, 64, 128, 512])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_float64(stream: Stream, dtype: np.dtype, style: str, head_dim: int) -> None:
    x = np.random.default_rng(head_dim).standard_normal((2, 5, 3, head_dim)).astype(dtype)
    positions = np.broadcast_to(np.arange(7, 12), (2, 5))
    for before, after in ((0, 0), (8, 8), (1, 2)):
        source = Padded(stream, x, before=before, after=after)
        out = Padded.poisoned(stream, x.shape, dtype, before=before, after=after)
        rope.launch(source.tensor, out.tensor, style=style, start=7, stream=stream)
        close(out.numpy(), turned(x, positions, style=style), dtype)
        assert same_bits(source.numpy(), x)
        rope.launch(source.tensor, style=style, start=7, stream=stream)
        assert same_bits(source.numpy(), out.numpy())


@pytest.mark.parametrize("rotary_dim", [0, 2, 6, 16, 20])
@pytest.mark.parametrize("style", STYLES)
def test_part_of_a_head(stream: Stream, style: str, rotary_dim: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 40)).astype(FLOAT16)
    expected = turned(x, np.array([[3, 4, 5]] * 2), style=style, rotary_dim=rotary_dim, base=500.0)
    source, out = Padded(stream, x, after=3), Padded.poisoned(stream, x.shape, FLOAT16, before=2)
    for target in (out, source):
        rope.launch(
            source.tensor, target.tensor, style=style, start=3, rotary_dim=rotary_dim, base=500.0, stream=stream
        )
        found = target.numpy()
        close(found, expected, FLOAT16)
        assert same_bits(found[..., rotary_dim:], x[..., rotary_dim:])


@pytest.mark.parametrize("style", STYLES)
def test_positions_on_the_device(stream: Stream, style: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 32)).astype(np.float32)
    starts = np.array([9, 0, 70000], np.int32)
    anywhere = np.random.default_rng(1).integers(0, 131072, (3, 4)).astype(np.int32)
    on_device = [DeviceTensor.from_numpy(array, stream=stream) for array in (starts, anywhere, anywhere.T)]
    for options, positions in (
        ({"start": on_device[0]}, starts[:, None] + np.arange(4)),
        ({"ends": on_device[0]}, starts[:, None] + np.arange(-4, 0)),
        ({"positions": on_device[1]}, anywhere),
        ({"positions": on_device[2].transpose(1, 0)}, anywhere),
        ({"positions": on_device[1][:1].broadcast_to((3, 4))}, np.broadcast_to(anywhere[:1], (3, 4))),
    ):
        out = Padded.poisoned(stream, x.shape, FLOAT32, after=4)
        rope.launch(DeviceTensor.from_numpy(x, stream=stream), out.tensor, style=style, stream=stream, **options)
        close(out.numpy(), turned(x, positions, style=style), FLOAT32)


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6])
def test_angles_are_accurate_far_away(stream: Stream, base: float) -> None:
    """At positions up to 131072 and beyond, sine and cosine are those of float64 to a few 1e-7."""
    pairs = 64
    positions = np.array([[0, 1, 1000, 65535, 99991, 131071, 131072, 2**24 - 1]], np.int32)
    x = np.zeros((1, positions.size, 1, 2 * pairs), np.float32)
    x[..., ::2] = 1.0  # a pair (1, 0) becomes (cos, sin)
    tensor, where = (DeviceTensor.from_numpy(array, stream=stream) for array in (x, positions))
    rope.launch(tensor, style="interleaved", base=base, positions=where, stream=stream)
    expected = turned(x, positions, style="interleaved", base=base)
    error = np.abs(tensor.numpy() - expected).max()
    frequencies = (base ** (-np.arange(pairs) / pairs)).astype(np.float32)
    naive = np.abs(np.sin(np.float32(131071) * frequencies) - expected[0, 5, 0, 1::2]).max()
    assert error < 4e-7, error
    assert naive > 1e-3  # what angles in float32 would give


def test_factors_divide_the_frequencies(stream: Stream) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 2, 8)).astype(np.float32)
    tensor, factors = DeviceTensor.from_numpy(x, stream=stream), (1.0, 1.0, 3.7, 8.0)
    rope.launch(tensor, style="half", start=5000, factors=factors, stream=stream)
    close(tensor.numpy(), turned(x, np.array([[5000, 5001, 5002]]), style="half", factors=factors), FLOAT32)


@pytest.mark.parametrize("style", STYLES)
def test_heads_of_packed_qkv_in_place(stream: Stream, style: str) -> None:
    packed = np.random.default_rng(0).standard_normal((2, 4, 8, 16)).astype(FLOAT16)  # 4 query, 2 key, 2 value heads
    qkv = DeviceTensor.from_numpy(packed, stream=stream)
    rope.launch(qkv[:, :, :6], style=style, start=2, stream=stream)
    expected = packed.astype(np.float64)
    expected[:, :, :6] = turned(packed[:, :, :6], np.array([[2, 3, 4, 5]] * 2), style=style)
    found = qkv.numpy()
    close(found, expected, FLOAT16)
    assert same_bits(found[:, :, 6:], packed[:, :, 6:])


def test_heads_before_tokens(stream: Stream) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 8)).astype(np.float32)  # bhsd
    tensor = DeviceTensor.from_numpy(x, stream=stream)
    rope.launch(tensor.transpose(0, 2, 1, 3), style="half", stream=stream)
    expected = turned(x.swapaxes(1, 2), np.array([np.arange(5)] * 2), style="half").swapaxes(1, 2)
    close(tensor.numpy(), expected, FLOAT32)


def test_more_rows_than_blocks(device: Device, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 2)
    rope._plan.cache_clear()
    x = np.random.default_rng(0).standard_normal((2, 30, 9, 24)).astype(np.float32)
    tensor = DeviceTensor.from_numpy(x, stream=stream)
    rope.launch(tensor, style="half", stream=stream)
    close(tensor.numpy(), turned(x, np.array([np.arange(30)] * 2), style="half"), FLOAT32)
    rope._plan.cache_clear()


def test_empty(stream: Stream) -> None:
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)):
        rope.launch(DeviceTensor.empty(shape, stream=stream), style="half", stream=stream)


def test_refuses(stream: Stream) -> None:
    x, other = (DeviceTensor.from_numpy(np.zeros((2, 3, 2, 8), np.float32), stream=stream) for _ in range(2))
    odd = DeviceTensor.from_numpy(np.zeros((2, 3, 2, 7), np.float16), stream=stream)
    places = DeviceTensor.from_numpy(np.zeros((2, 3), np.int32), stream=stream)
    for arguments, options, message in (
        ((x,), {"style": "neox"}, "style is 'neox'"),
        ((x[0],), {}, "x has shape"),
        ((x[..., ::2],), {}, "x has strides"),
        ((x, other[:, :2]), {}, "out is float32"),
        ((x, other[:1].broadcast_to(x.shape)), {}, "out has shape"),
        ((odd,), {}, "head_dim is 7"),
        ((x,), {"rotary_dim": 10}, "rotary_dim is 10"),
        ((x,), {"rotary_dim": 3}, "rotary_dim is 3"),
        ((x,), {"start": -1}, "start is -1"),
        ((x,), {"start": 2**24 + 1}, "start is 16777217"),
        ((x,), {"start": places}, "start is int32"),
        ((x,), {"positions": places[:, :2]}, "positions is int32"),
        ((x,), {"positions": other[:, :, 0, 0]}, "positions is float32"),
        ((x,), {"positions": places, "start": 1}, "of start, ends and positions more than one is given"),
        ((x,), {"positions": places, "ends": places[:, 0]}, "of start, ends and positions more than one is given"),
        ((x,), {"base": 0.0}, "base is 0"),
        ((x,), {"factors": (1.0,)}, "factors has 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            rope.launch(*arguments, stream=stream, **{"style": "half", **options})
