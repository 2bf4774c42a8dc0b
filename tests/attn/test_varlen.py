"""attention_varlen(): packed sequences, each on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hipattn
from hipattn import ArgumentError, Device, DeviceTensor, Stream, attention_varlen
from hipattn.attn import reference
from hipattn.attn.functional import fallback
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.features import FEATURES, Sizes, of_reference
from tests.helpers.flash import skip_unless_served
from tests.helpers.framed import Framed
from tests.helpers.inputs import Array, qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import same_bits
from tests.helpers.tolerance import DTYPES, FLOOR, magnitude

# Short and long, one of each empty, both empty, more queries than keys, one query.
LENGTHS_Q = (5, 0, 150, 64, 0, 1, 33)
LENGTHS_K = (9, 4, 170, 65, 0, 40, 7)
# Options that have a packed form.
PACKED = [name for name in FEATURES if not {"bias", "mask"} & {name.split()[0], name.split()[-1]} and name != "all"]


def starts_of(lengths: Any) -> Array:
    return np.cumsum([0, *lengths])


STARTS_Q, STARTS_K = starts_of(LENGTHS_Q), starts_of(LENGTHS_K)


def packed(
    starts_q: Array = STARTS_Q, starts_k: Array = STARTS_K, dtype: Any = np.float16, seed: int = 0
) -> tuple[Array, Array, Array]:
    arrays = qkv(1, int(starts_q[-1]), int(starts_k[-1]), 4, 2, 40, 24, dtype, seed)
    return tuple(array[0] for array in arrays)  # type: ignore[return-value]


def check(stream: Stream, arrays: Any, starts_q: Array, starts_k: Array, **options: Any) -> None:
    """Compare with float64, into a guarded output, with the starts on the device."""
    dtype = arrays[0].dtype
    skip_unless_served(stream, dtype, arrays[0].shape[2], arrays[2].shape[2])
    plain = of_reference(options)
    expected, expected_lse = reference.attention_varlen(*arrays, starts_q, starts_k, return_lse=True, **plain)
    low = reference.attention_varlen(*arrays, starts_q, starts_k, dtype=dtype, **plain).astype(np.float64)
    bound = max(2 * float(np.abs(low - expected).max(initial=0)), FLOOR[dtype] * magnitude(expected))
    out = Framed(stream, expected.shape, dtype)
    starts = [DeviceTensor.from_numpy(x.astype(np.int32), stream=stream) for x in (starts_q, starts_k)]
    before = fallback.counts.total()
    given, lse = attention_varlen(
        *upload(stream, *arrays), *starts, out=out.tensor, return_lse=True, method="flash", stream=stream, **options
    )
    assert fallback.counts.total() == before
    assert given is out.tensor
    assert_close(out.numpy(), expected, atol=bound, name="out")
    assert_close(lse.numpy(), expected_lse, atol=1e-5, rtol=1e-5, name="lse")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", ["causal", "alibi of batch"])
def test_each_dtype(stream: Stream, feature: str, dtype: np.dtype) -> None:
    options = FEATURES[feature](Sizes(len(LENGTHS_Q), 4, 150, 170, dtype))
    check(stream, packed(dtype=dtype), STARTS_Q, STARTS_K, **options)


def test_very_many_sequences_of_which_one_is_not_empty(stream: Stream) -> None:
    """The square of their number is 2^32."""
    sequences, rows = 2**16, 20
    q = np.random.default_rng(0).standard_normal((rows, 1, 8)).astype(np.float16)
    skip_unless_served(stream, np.float16, 8)
    starts = np.full(sequences + 1, rows)
    starts[: sequences // 2] = 0
    out = attention_varlen(q, q, q, starts, starts, causal=True, method="flash", stream=stream)
    alone = hipattn.attention(q[None], q[None], q[None], causal=True, method="flash", stream=stream)[0]
    assert same_bits(out, alone)


@pytest.mark.parametrize("feature", PACKED)
def test_each_option(stream: Stream, feature: str) -> None:
    options = FEATURES[feature](Sizes(len(LENGTHS_Q), 4, 150, 170, np.dtype(np.float16)))
    check(stream, packed(), STARTS_Q, STARTS_K, **options)


def test_options_together(stream: Stream) -> None:
    at = Sizes(len(LENGTHS_Q), 4, 150, 170, np.dtype(np.float16))
    options: dict[str, Any] = {}
    for name in ("causal", "left", "softcap", "alibi of batch", "sinks", "score_mod", "mask_mod", "negative scale"):
        options |= FEATURES[name](at)
    check(stream, packed(), STARTS_Q, STARTS_K, **options)


@pytest.mark.parametrize(
    "lengths",
    [[], [0], [0, 0, 0], [1], [1] * 40, [0, 0, 7], [7, 0, 0], [129, 127, 1, 128], [300]],
    ids=str,
)
def test_any_lengths(stream: Stream, lengths: list[int]) -> None:
    starts = starts_of(lengths)
    check(stream, packed(starts, starts), starts, starts, causal=True)


@settings(max_examples=15)
@given(lengths=st.lists(st.tuples(st.integers(0, 140), st.integers(0, 140)), max_size=8), seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_any_sequences(device: Device, lengths: list[tuple[int, int]], seed: int) -> None:
    starts_q, starts_k = (starts_of([pair[side] for pair in lengths]) for side in (0, 1))
    with Stream(device) as stream:
        check(stream, packed(starts_q, starts_k, seed=seed), starts_q, starts_k, causal=True)


def test_one_sequence_is_attention(stream: Stream) -> None:
    skip_unless_served(stream, np.float16, 40, 24)
    arrays = packed([0, 70], [0, 90])
    out, lse = attention_varlen(*upload(stream, *arrays), [0, 70], [0, 90], causal=True, return_lse=True, stream=stream)
    batched = [array[None] for array in arrays]
    expected, expected_lse = hipattn.attention(
        *upload(stream, *batched), causal=True, return_lse=True, method="flash", stream=stream
    )
    assert same_bits(out.numpy(), expected.numpy()[0])
    assert same_bits(lse.numpy(), expected_lse.numpy()[0])


def test_a_sequence_s_nan_stays_in_it(stream: Stream) -> None:
    skip_unless_served(stream, np.float16, 40, 24)
    q, k, v = packed()
    clean = attention_varlen(*upload(stream, q, k, v), STARTS_Q, STARTS_K, stream=stream).numpy()
    rows, keys = slice(STARTS_Q[3], STARTS_Q[4]), slice(STARTS_K[3], STARTS_K[4])
    q[rows], k[keys], v[keys] = np.nan, np.nan, np.inf
    out = attention_varlen(*upload(stream, q, k, v), STARTS_Q, STARTS_K, stream=stream).numpy()
    assert np.isnan(out[rows]).all()
    others = np.ones(len(q), bool)
    others[rows] = False
    assert same_bits(out[others], clean[others])


@pytest.mark.parametrize("kind", [list, tuple, np.int32, np.int64, np.uint16])
def test_starts_on_the_host(stream: Stream, kind: Any) -> None:
    skip_unless_served(stream, np.float16, 40, 24)
    tensors = upload(stream, *packed())
    expected = reference.attention_varlen(*packed(), STARTS_Q, STARTS_K)
    starts = [kind(x.tolist()) if kind in (list, tuple) else x.astype(kind) for x in (STARTS_Q, STARTS_K)]
    out = attention_varlen(*tensors, *starts, stream=stream)
    assert_close(out.numpy(), expected, atol=2e-3)


def test_arrays_of_the_host() -> None:
    with Stream() as stream:
        skip_unless_served(stream, np.float16, 40, 24)
    arrays = packed()
    expected, expected_lse = reference.attention_varlen(*arrays, STARTS_Q, STARTS_K, return_lse=True, causal=True)
    target = np.full(expected.shape, np.nan, np.float16)
    out, lse = attention_varlen(*arrays, STARTS_Q, STARTS_K, out=target, causal=True, return_lse=True)
    assert out is target
    assert isinstance(lse, np.ndarray)
    assert_close(out, expected, atol=2e-3)
    assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    with Stream() as stream:
        skip_unless_served(stream, np.float16, 40, 24)
    arrays = packed()
    starts = [torch.from_numpy(x) for x in (STARTS_Q, STARTS_K)]  # int64
    out = attention_varlen(*map(torch.from_numpy, arrays), *starts)
    assert isinstance(out, torch.Tensor)
    assert_close(out.numpy(), reference.attention_varlen(*arrays, STARTS_Q, STARTS_K), atol=2e-3)


def test_tensors_on_the_device_are_used_in_place(stream: Stream) -> None:
    skip_unless_served(stream, np.float16, 40, 24)
    tensors = upload(stream, *packed(), STARTS_Q.astype(np.int32), STARTS_K.astype(np.int32))
    attention_varlen(*tensors, stream=stream)
    with bindings.record() as calls:
        attention_varlen(*tensors, stream=stream)
    assert not [name for name, _ in calls if "Memcpy" in name or "Synchronize" in name]


@pytest.mark.parametrize("device_starts", [False, True])
def test_the_reference_takes_all(stream: Stream, device_starts: bool) -> None:
    at = Sizes(len(LENGTHS_Q), 4, 150, 170, np.dtype(np.float16))
    options: dict[str, Any] = {}
    for name in ("causal", "softcap", "alibi of batch", "sinks", "score_mod", "mask_mod"):
        options |= FEATURES[name](at)
    arrays = packed()
    starts: Any = STARTS_Q.astype(np.int32), STARTS_K.astype(np.int32)
    expected = reference.attention_varlen(*arrays, *starts, **of_reference(options)).astype(np.float16)
    if device_starts:
        starts = upload(stream, *starts)
    out = attention_varlen(*upload(stream, *arrays), *starts, method="reference", stream=stream, **options)
    assert isinstance(out, DeviceTensor)
    assert same_bits(out.numpy(), expected)


def bad_arguments() -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong → (the arguments that differ, what the message names)."""
    q, k, v = packed()
    return {
        "rank": ({"q": q[None]}, r"q has shape \(1, 253, 4, 40\); it takes \[total, heads, dim\]"),
        "dtype": ({"k": k.astype(np.float32)}, "k is float32; q is float16"),
        "int": ({"v": v.astype(np.int32)}, "v('s dtype)? is int32; accepted: float32"),
        "heads": ({"k": k[:, :1]}, "v has shape"),
        "total": ({"v": v[1:]}, "v has shape"),
        "None": ({"cu_seqlens_k": None}, "cu_seqlens_k is None"),
        "starts later": ({"cu_seqlens_q": STARTS_Q + 1}, "cu_seqlens_q is .* never fall, from 0 to 253"),
        "ends early": ({"cu_seqlens_k": np.minimum(STARTS_K, 290)}, "cu_seqlens_k is .* never fall, from 0 to 295"),
        "falls": ({"cu_seqlens_q": [0, 9, 5, 155, 219, 219, 220, 253]}, "cu_seqlens_q is"),
        "floats": ({"cu_seqlens_q": STARTS_Q.astype(float)}, "cu_seqlens_q is .* it takes an array of integers"),
        "ragged": ({"cu_seqlens_q": [[0], [1, 2]]}, "cu_seqlens_q is"),
        "number": ({"cu_seqlens_q": 3}, r"cu_seqlens_q has shape \(\)"),
        "matrix": ({"cu_seqlens_q": STARTS_Q[None]}, r"cu_seqlens_q has shape \(1, 8\)"),
        "nothing": ({"cu_seqlens_q": []}, "cu_seqlens_q is|cu_seqlens_q has shape"),
        "none": ({"cu_seqlens_q": [0], "cu_seqlens_k": [0]}, "cu_seqlens_q has no sequence; there are 253 rows"),
        "counts": ({"cu_seqlens_k": STARTS_K[1:]}, r"cu_seqlens_k has shape \(7,\)"),
        "slopes": ({"alibi_slopes": np.zeros((3, 4), np.float32)}, r"alibi_slopes has shape .* \(4,\) or \(7, 4\)"),
        "staged": ({"method": "staged"}, "cu_seqlens_q is given; method 'staged' takes"),
        "stream": ({"stream": 0}, "stream is int"),
        "window": ({"window": 3}, "window is 3"),
        "out": ({"out": q}, r"out is float16 \(253, 4, 40\); it takes float16 \(253, 4, 24\)"),
    }


@pytest.mark.parametrize("case", bad_arguments())
@pytest.mark.parametrize("place", ["host", "device"])
def test_bad_arguments(stream: Stream, case: str, place: str) -> None:
    changed, message = bad_arguments()[case]
    q, k, v = packed()
    given: dict[str, Any] = {"q": q, "k": k, "v": v, "cu_seqlens_q": STARTS_Q, "cu_seqlens_k": STARTS_K, **changed}
    if place == "device":
        for name in ("q", "k", "v", "out"):
            if given.get(name) is not None:
                given[name] = upload(stream, given[name])[0]
    before = live()
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        attention_varlen(**given)
    assert live() == before
    assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


def test_rows_of_no_sequence_are_refused_with_starts_on_the_device(stream: Stream) -> None:
    starts = DeviceTensor.from_numpy(np.zeros(1, np.int32), stream=stream)
    with pytest.raises(ArgumentError, match="cu_seqlens_q has no sequence; there are 253 rows"):
        attention_varlen(*upload(stream, *packed()), starts, starts, stream=stream)


def test_starts_on_the_device_are_of_int32_and_contiguous(stream: Stream) -> None:
    q, k, v = upload(stream, *packed())
    starts = DeviceTensor.from_numpy(np.repeat(STARTS_Q, 2).astype(np.int32), stream=stream)
    with pytest.raises(ArgumentError, match=r"cu_seqlens_q has strides \(2,\); it takes a contiguous tensor"):
        attention_varlen(q, k, v, starts[::2], STARTS_K, stream=stream)
    floats = DeviceTensor.from_numpy(STARTS_Q.astype(np.float32), stream=stream)
    with pytest.raises(ArgumentError, match="cu_seqlens_q is float32; accepted: int32"):
        attention_varlen(q, k, v, floats, STARTS_K, stream=stream)
