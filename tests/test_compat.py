"""The drop-ins against torch's own function, and against flash-attention's definition in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import hipattn
from hipattn import ArgumentError, DeviceTensor, Stream, flash_attn_func, flash_attn_varlen_func
from hipattn.attn import reference
from hipattn.runtime import bindings
from tests.helpers.inputs import qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import DTYPES, attention_bound

sdpa = hipattn.scaled_dot_product_attention

# What torch takes: [..., heads, seq, dim].
SHAPES = {
    "2-D": ((17, 24), (17, 24), (17, 16)),
    "3-D": ((3, 17, 24), (3, 33, 24), (3, 33, 16)),
    "4-D": ((2, 3, 33, 24), (2, 3, 17, 24), (2, 3, 17, 16)),
    "5-D": ((2, 2, 3, 17, 24), (2, 2, 3, 33, 24), (2, 2, 3, 33, 16)),
}


def arrays(shapes: Any, dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def close_to_torch(out: Any, tensors: Any, **options: Any) -> None:
    """Compare with torch's function in float64, in which it has no fast path."""
    torch = pytest.importorskip("torch")
    wide = [torch.from_numpy(x).double() for x in tensors]
    mask = options.get("attn_mask")
    if mask is not None:
        mask = torch.from_numpy(mask)
        options["attn_mask"] = mask if mask.dtype == torch.bool else mask.double()
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, **options)
    assert_close(np.asarray(out), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_sdpa_is_torch_s(case: str, options: dict[str, Any]) -> None:
    given = arrays(SHAPES[case])
    out = sdpa(*given, **options)
    assert out.shape == (*SHAPES[case][0][:-1], 16)
    close_to_torch(out, given, **options)


@pytest.mark.parametrize("rows", [1, 5, 8, 40])
@pytest.mark.parametrize("keys", [1, 5, 8, 40])
def test_sdpa_s_causal_mask_is_aligned_top_left(rows: int, keys: int) -> None:
    given = arrays(((1, 2, rows, 8), (1, 2, keys, 8), (1, 2, keys, 8)))
    close_to_torch(sdpa(*given, is_causal=True), given, is_causal=True)


MASKS = {
    "2-D": ["17 17", "1 17", "17 1", "17"],
    "3-D": ["17 33", "3 17 33", "1 17 33", "3 1 33", "33"],
    "4-D": ["33 17", "3 1 17", "2 1 33 17", "1 3 33 17", "2 3 33 17"],
    "5-D": ["17 33", "3 17 33", "1 1 1 17 33", "2 2 3 17 33", "2 2 1 1 33", "1 2 3 17 33", "2 1 1 17 1", "2 3 17 33"],
}


@pytest.mark.parametrize(("case", "shape"), [(case, shape) for case, shapes in MASKS.items() for shape in shapes])
@pytest.mark.parametrize("kind", [np.bool_, np.float32])
def test_sdpa_s_mask_broadcasts(case: str, shape: str, kind: Any) -> None:
    given = arrays(SHAPES[case])
    rng = np.random.default_rng(1)
    sizes = tuple(map(int, shape.split()))
    mask = rng.random(sizes) < 0.7 if kind is np.bool_ else rng.standard_normal(sizes).astype(np.float32)
    if kind is np.bool_:
        mask[..., 0] = True  # torch's own answer to a query without a key differs between its versions
    close_to_torch(sdpa(*given, attn_mask=mask), given, attn_mask=mask)


def test_sdpa_without_a_key_is_zero() -> None:
    given = arrays(SHAPES["4-D"])
    mask = np.ones((33, 17), bool)
    mask[5] = False
    assert (sdpa(*given, attn_mask=mask)[:, :, 5] == 0).all()


def test_sdpa_with_fewer_key_heads() -> None:
    given = arrays(((2, 6, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8)))
    close_to_torch(sdpa(*given, enable_gqa=True), given, enable_gqa=True)
    with pytest.raises(ArgumentError, match="query has 6 heads, key 2; they may differ with enable_gqa=True only"):
        sdpa(*given)


@pytest.mark.parametrize("case", SHAPES)
def test_sdpa_of_tensors_on_the_device(stream: Stream, case: str) -> None:
    given = arrays(SHAPES[case])
    tensors = upload(stream, *given)
    stream.sync()
    with bindings.record() as calls:
        out = sdpa(*tensors, is_causal=True)
    assert isinstance(out, DeviceTensor)
    assert not [name for name, _ in calls if "Memcpy" in name]
    close_to_torch(out.numpy(), given, is_causal=True)


def test_sdpa_of_a_mask_on_the_device(stream: Stream) -> None:
    given = arrays(SHAPES["5-D"])
    tensors = upload(stream, *given)
    for shape in ((17, 33), (3, 17, 33), (1, 1, 3, 17, 33), (2, 2, 3, 1, 33)):
        mask = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        out = sdpa(*tensors, attn_mask=upload(stream, mask)[0])
        close_to_torch(out.numpy(), given, attn_mask=mask)
    (uneven,) = upload(stream, np.zeros((1, 2, 3, 17, 33), np.float32))
    with pytest.raises(ArgumentError, match=r"attn_mask has shape .* its first 2 dimensions must be evenly spaced"):
        sdpa(*tensors, attn_mask=uneven)
    turned = upload(stream, np.zeros((3, 2, 3, 17, 24), np.float32))[0].transpose(1, 0, 2, 3, 4)
    keys = upload(stream, np.zeros((2, 3, 3, 33, 24), np.float32))[0]
    with pytest.raises(ArgumentError, match=r"query has shape .* its first 2 dimensions must be evenly spaced"):
        sdpa(turned, keys, keys)


def test_sdpa_of_torch_is_torch() -> None:
    torch = pytest.importorskip("torch")
    given = arrays(SHAPES["4-D"])
    out = sdpa(*map(torch.from_numpy, given), attn_mask=torch.ones(33, 17, dtype=torch.bool))
    assert isinstance(out, torch.Tensor)
    close_to_torch(out.numpy(), given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout_p": 0.1}, "dropout_p is 0.1; it takes 0"),
        ({"dropout_p": "0"}, "dropout_p is '0'"),
        ({"is_causal": 1}, "is_causal is 1; it takes True or False"),
        ({"enable_gqa": None}, "enable_gqa is None"),
        ({"attn_mask": np.ones((33, 17), bool), "is_causal": True}, "attn_mask is given and is_causal is True"),
        ({"attn_mask": np.ones((33, 16), bool)}, r"attn_mask has shape \(33, 16\); .* broadcasts to \(2, 3, 33, 17\)"),
        ({"attn_mask": np.ones((33, 17))}, "attn_mask is float64; accepted: bool, float32"),
        ({"attn_mask": np.ones((1, 2, 3, 33, 17), bool)}, "attn_mask has shape"),
        ({"query": np.zeros(3, np.float32)}, r"query has shape \(3,\)"),
        ({"key": np.zeros((3, 17, 24), np.float32)}, r"key has shape \(3, 17, 24\), query"),
        ({"key": np.zeros((1, 3, 17, 24), np.float32)}, r"key has shape \(1, 3, 17, 24\), query .* must agree"),
        ({"value": np.zeros((2, 3, 16, 16), np.float32)}, r"value has shape \(2, 3, 16, 16\); with key"),
        ({"value": np.zeros((2, 3, 17, 16), np.float16)}, "value is float16; query is float32"),
        ({"key": None}, "key is None"),
    ],
    ids=str,
)
def test_sdpa_refuses_by_its_own_names(changes: dict[str, Any], message: str) -> None:
    given = dict(zip(("query", "key", "value"), arrays(SHAPES["4-D"]), strict=True))
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        sdpa(**(given | changes))
    assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


SLOPES = 2.0 ** -np.arange(1, 5, dtype=np.float32)

# flash-attention's arguments → the reference's.
FLASH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({"causal": True}, {"causal": True}),
    "scale": ({"softmax_scale": 0.2}, {"scale": 0.2}),
    "window": ({"window_size": (7, 3)}, {"window": (7, 3)}),
    "left": ({"window_size": (7, -1)}, {"window": (7, None)}),
    "right": ({"window_size": (-1, 0)}, {"causal": True}),
    "causal window": ({"causal": True, "window_size": (7, 9)}, {"causal": True, "window": (7, None)}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "slopes": ({"alibi_slopes": SLOPES}, {"alibi_slopes": SLOPES}),
    "deterministic": ({"deterministic": True}, {}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FLASH)
def test_flash_attn(stream: Stream, name: str, dtype: np.dtype) -> None:
    given, options = FLASH[name]
    q, k, v = qkv(2, 40, 33, 4, 2, 40, 24, dtype)  # queries without a key, too
    expected, expected_lse = reference.attention(q, k, v, return_lse=True, **options)
    tensors = upload(stream, q, k, v)
    out, lse, s_dmask = flash_attn_func(*tensors, return_attn_probs=True, **given)
    assert isinstance(out, DeviceTensor)
    assert s_dmask is None
    assert_close(out.numpy(), expected, atol=attention_bound(q, k, v, expected=expected, **options))
    assert_close(lse.numpy(), expected_lse, atol=1e-5, rtol=1e-5)


def test_flash_attn_without_probabilities_is_the_output_alone(stream: Stream) -> None:
    tensors = upload(stream, *qkv(dtype=np.float16))
    out = flash_attn_func(*tensors)
    assert isinstance(out, DeviceTensor)
    assert_close(out.numpy(), reference.attention(*qkv(dtype=np.float16)), atol=2e-3)


@pytest.mark.parametrize("name", FLASH)
def test_flash_attn_varlen(stream: Stream, name: str) -> None:
    given, options = FLASH[name]
    starts_q, starts_k = np.cumsum([0, 5, 0, 40, 1]), np.cumsum([0, 9, 4, 33, 0])
    q, k, v = (x[0] for x in qkv(1, 46, 46, 4, 2, 40, 24, np.float16))
    expected, expected_lse = reference.attention_varlen(q, k, v, starts_q, starts_k, return_lse=True, **options)
    low = reference.attention_varlen(q, k, v, starts_q, starts_k, dtype=np.float16, **options)
    bound = max(2 * float(np.abs(low.astype(float) - expected).max()), 2.0**-10 * float(np.abs(expected).max()))
    tensors = upload(stream, q, k, v)
    starts = [DeviceTensor.from_numpy(x.astype(np.int32), stream=stream) for x in (starts_q, starts_k)]
    out, lse, s_dmask = flash_attn_varlen_func(*tensors, *starts, 40, 33, return_attn_probs=True, **given)
    assert s_dmask is None
    assert_close(out.numpy(), expected, atol=bound)
    assert_close(lse.numpy(), expected_lse, atol=1e-5, rtol=1e-5)


def test_flash_attn_of_torch_is_torch() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = qkv(dtype=np.float32)
    out, lse, _ = flash_attn_func(*map(torch.from_numpy, (q, k, v)), causal=True, return_attn_probs=True)
    assert isinstance(out, torch.Tensor)
    assert isinstance(lse, torch.Tensor)
    assert_close(out.numpy(), reference.attention(q, k, v, causal=True), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout_p": 0.1}, "dropout_p is 0.1; it takes 0"),
        ({"causal": 1}, "causal is 1"),
        ({"softmax_scale": math.nan}, "softmax_scale is nan"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"softcap": None}, "softcap is None"),
        ({"window_size": (-2, 0)}, r"window_size is \(-2, 0\); it takes \(left, right\), each -1"),
        ({"window_size": (1, 2, 3)}, "window_size is"),
        ({"window_size": None}, "window_size is None"),
        ({"window_size": (0.5, 1)}, "window_size is"),
        ({"window_size": (float("inf"), 0)}, r"window_size is \(inf, 0\)"),
        ({"deterministic": "yes"}, "deterministic is 'yes'"),
        ({"return_attn_probs": 1}, "return_attn_probs is 1"),
        ({"alibi_slopes": np.zeros(3)}, "alibi_slopes has shape"),
    ],
    ids=str,
)
def test_flash_attn_refuses_by_its_own_names(changes: dict[str, Any], message: str) -> None:
    q, k, v = qkv(dtype=np.float16)
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        flash_attn_func(q, k, v, **changes)
    packed = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    starts = [0, 33, 66]
    with pytest.raises(ArgumentError, match=message):
        flash_attn_varlen_func(*packed, starts, starts, 33, 33, **changes)
    assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


def test_flash_attn_varlen_refuses_a_paged_cache() -> None:
    q, k, v = (x[0] for x in qkv(batch=1, dtype=np.float16))
    with pytest.raises(ArgumentError, match="block_table is given; it takes None"):
        flash_attn_varlen_func(q, k, v, [0, 33], [0, 33], 33, 33, block_table=np.zeros((1, 1), np.int32))
