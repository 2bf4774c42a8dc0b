"""rope_append is rope and an append, bit for bit, and writes nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import ArgumentError, DeviceTensor, Stream
from hipattn.kernels import float8, rope, rope_append, rows
from tests.helpers.padded import same_bits
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import DTYPES
from tests.kernels.test_paged_append import bits, quantised, table_of
from tests.kernels.test_rope import turned

BATCH, HEADS, HEADS_KV = 3, 4, 2
ENDS = [9, 3, 20]

CASES = pairwise(
    {
        "dtype": DTYPES,
        "style": rope.STYLES,
        "dims": ((64, 64, None), (16, 16, 0), (40, 24, 10), (6, 5, None), (128, 40, 96), (2, 257, None)),
        "page_size": (None, 1, 4, 16),
        "tokens": (1, 3),
        "packed": (True, False),
        "fp8": (False, True),
    }
)
SCALES = np.array([[1, 0.37], [2.0**-8, 3]], np.float32)  # of keys and of values; some are too large for e4m3


def randoms(shape: tuple[int, ...], dtype: Any, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def new_tokens(stream: Stream, case: dict[str, Any]) -> tuple[list[NDArray[Any]], list[DeviceTensor]]:
    """Return q, k, v of random numbers: slices of one projection, or each its own."""
    dtype, (dim, v_dim, _), tokens = case["dtype"], case["dims"], case["tokens"]
    if case["packed"] and v_dim == dim:
        packed = randoms((BATCH, tokens, HEADS + 2 * HEADS_KV, dim), dtype, 0)
        tensor = DeviceTensor.from_numpy(packed, stream=stream)
        ends = slice(0, HEADS), slice(HEADS, HEADS + HEADS_KV), slice(HEADS + HEADS_KV, None)
        return [packed[:, :, each] for each in ends], [tensor[:, :, each] for each in ends]
    sizes = (HEADS, dim), (HEADS_KV, dim), (HEADS_KV, v_dim)
    arrays = [randoms((BATCH, tokens, *size), dtype, at) for at, size in enumerate(sizes)]
    return arrays, [DeviceTensor.from_numpy(array, stream=stream) for array in arrays]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())).replace(" ", ""))
def test_is_rope_and_an_append(stream: Stream, case: dict[str, Any]) -> None:
    dtype, (dim, v_dim, rotary_dim), tokens = case["dtype"], case["dims"], case["tokens"]
    page_size = case["page_size"]
    options: Any = {"style": case["style"], "rotary_dim": rotary_dim, "base": 500.0}
    (q, k, v), tensors = new_tokens(stream, case)
    ends = DeviceTensor.from_numpy(np.array(ENDS, np.int32), stream=stream)
    expected = []
    for array in (q, k):
        alone = DeviceTensor.from_numpy(array, stream=stream)
        rope.launch(alone, **options, ends=ends, stream=stream)
        expected.append(alone.numpy())
    pages, slots = (BATCH, 21) if page_size is None else (60, page_size)
    table = None if page_size is None else table_of(pages, ENDS, page_size)
    kept = np.dtype(np.uint8) if case["fp8"] else dtype
    caches = [bits((pages, slots, HEADS_KV, size), kept, size) for size in (dim, v_dim)]
    on_device = [DeviceTensor.from_numpy(cache, stream=stream) for cache in caches]
    where: Any = {"ends": ends, "block_table": None if table is None else DeviceTensor.from_numpy(table, stream=stream)}
    stored = [expected[1], v]
    if case["fp8"]:
        kind = float8.e4m3(stream.device.arch)
        where["scales"] = tuple(DeviceTensor.from_numpy(each, stream=stream) for each in SCALES)
        stored = [quantised(x, scale, kind).view(np.uint8) for x, scale in zip(stored, SCALES, strict=True)]
    rope_append.launch(*tensors, *on_device, **options, **where, stream=stream)
    for b, t in np.ndindex(BATCH, tokens):
        position = ENDS[b] - tokens + t
        page = b if table is None else table[b, position // slots]
        for cache, array in zip(caches, stored, strict=True):
            cache[page, position % slots] = array[b, t]
    for found, wanted in zip((*tensors, *on_device), (*expected, v, *caches), strict=True):
        assert same_bits(found.numpy(), np.ascontiguousarray(wanted))


def test_from_one_position_on(stream: Stream) -> None:
    """Against float64, too."""
    case = {"dtype": DTYPES[0], "dims": (16, 16, None), "tokens": 4, "packed": True}
    (q, k, v), tensors = new_tokens(stream, case)
    caches = [bits((BATCH, 9, HEADS_KV, 16), DTYPES[0], at) for at in range(2)]
    on_device = [DeviceTensor.from_numpy(cache, stream=stream) for cache in caches]
    factors = tuple(1.0 + i for i in range(8))
    rope_append.launch(*tensors, *on_device, style="half", start=5, factors=factors, stream=stream)
    positions = np.broadcast_to(np.arange(5, 9), (BATCH, 4))
    for found, array in zip(tensors, (q, k), strict=False):
        expected = turned(array, positions, style="half", factors=factors)
        np.testing.assert_allclose(found.numpy(), expected, atol=4e-6)
    caches[0][:, 5:], caches[1][:, 5:] = tensors[1].numpy(), v
    assert all(same_bits(found.numpy(), cache) for found, cache in zip(on_device, caches, strict=True))


def test_what_has_no_place_is_not_written(stream: Stream) -> None:
    far = 2**31 - 1
    for ends, table in (([1, 22, far], None), ([1, 9, far], [[-1, 0], [60, far], [3, 4]])):
        case = {"dtype": DTYPES[0], "dims": (16, 16, 0), "tokens": 2, "packed": False}
        (_, k, v), tensors = new_tokens(stream, case)
        caches = [bits((3 if table is None else 60, 21 if table is None else 8, HEADS_KV, 16), DTYPES[0], 1)] * 2
        on_device = [DeviceTensor.from_numpy(cache, stream=stream) for cache in caches]
        where = {
            name: None if x is None else DeviceTensor.from_numpy(np.array(x, np.int32), stream=stream)
            for name, x in (("ends", ends), ("block_table", table))
        }
        rope_append.launch(*tensors, *on_device, style="half", rotary_dim=0, **where, stream=stream)
        for found, cache, array in zip(on_device, caches, (k, v), strict=True):
            wanted = cache.copy()
            if table is None:  # the first's second token, the second's first
                wanted[0, 0], wanted[1, 20] = array[0, 1], array[1, 0]
            assert same_bits(found.numpy(), wanted)


def test_more_rows_than_blocks(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 2)
    rope_append._plan.cache_clear()
    case = {"dtype": DTYPES[0], "dims": (40, 40, 0), "tokens": 30, "packed": False}
    (_, *new), tensors = new_tokens(stream, case)
    caches = [DeviceTensor.from_numpy(np.zeros_like(array), stream=stream) for array in new]
    rope_append.launch(*tensors, *caches, style="half", rotary_dim=0, stream=stream)
    assert all(same_bits(found.numpy(), array) for found, array in zip(caches, new, strict=True))
    rope_append._plan.cache_clear()


def test_nothing(stream: Stream) -> None:
    q, k = (DeviceTensor.empty((2, 0, heads, 8), stream=stream) for heads in (4, 2))
    cache = DeviceTensor.empty((2, 5, 2, 8), stream=stream)
    rope_append.launch(q, k, k, cache, cache, style="half", start=5, stream=stream)


def test_refuses(stream: Stream) -> None:
    def zeros(*shape: int, dtype: Any = np.float16) -> DeviceTensor:
        return DeviceTensor.from_numpy(np.zeros(shape, dtype), stream=stream)

    good: dict[str, Any] = {"q": zeros(2, 3, 4, 8), "k": zeros(2, 3, 2, 8), "v": zeros(2, 3, 2, 4)}
    good |= {"k_cache": zeros(2, 5, 2, 8), "v_cache": zeros(2, 5, 2, 4), "style": "half"}
    ends, table = zeros(2, dtype=np.int32), zeros(2, 3, dtype=np.int32)
    bytes_ = {name: zeros(*good[name].shape, dtype=np.uint8) for name in ("k_cache", "v_cache")}
    scale = zeros(2, dtype=np.float32)
    for changes, message in (
        ({"style": "neox"}, "style is 'neox'"),
        ({"start": 3}, "start is 3; a cache of 5 takes 3 tokens at 0 to 2"),
        ({"start": -1}, "start is -1"),
        ({"start": 1, "ends": ends}, "start and ends are given"),
        ({"block_table": table}, "block_table is given without ends"),
        ({"ends": ends[:1]}, r"ends is int32 \(1,\)"),
        ({"ends": good["q"]}, "ends is float16"),
        ({"ends": ends, "block_table": table[:1]}, r"block_table is int32 \(1, 3\)"),
        ({"q": good["q"][0]}, r"q has shape \(3, 4, 8\)"),
        ({"k": good["k"][:, :2]}, "k has shape .*they differ at most in the heads"),
        ({"v": good["v"][:, :2]}, "v has shape .*they differ at most in the last dimension"),
        ({"k_cache": good["v_cache"]}, "k_cache has shape"),
        ({"v_cache": good["v_cache"][:1]}, "v_cache has shape"),
        ({"v": zeros(2, 3, 2, 4, dtype=np.float32)}, "v is float32; q is float16"),
        ({"scales": (scale, scale)}, "k_cache is float16; with scales it takes uint8"),
        (bytes_, "k_cache is uint8; q is float16"),
        (bytes_ | {"scales": (scale, scale[:1])}, r"v_scales is float32 \(1,\)"),
        (bytes_ | {"scales": (ends, scale)}, "k_scales is int32"),
        ({"q": zeros(2, 3, 4, 8, dtype=np.int32)}, "q's dtype is int32"),
        ({"q": zeros(2, 3, 4, 16)[..., ::2]}, "q has strides"),
        ({"q": zeros(2, 3, 1, 8).broadcast_to((2, 3, 4, 8))}, "q has shape .* must not overlap"),
        ({"rotary_dim": 7}, "rotary_dim is 7"),
        ({"base": 0}, "base is 0"),
        ({"factors": (1.0,)}, "factors has 1 numbers; it takes 4"),
    ):
        arguments = good | changes
        tensors = [arguments.pop(name) for name in ("q", "k", "v", "k_cache", "v_cache")]
        with pytest.raises(ArgumentError, match=message):
            rope_append.launch(*tensors, **arguments, stream=stream)
