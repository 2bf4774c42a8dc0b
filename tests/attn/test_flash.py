"""The fused kernel through attention(): every option, alone and together, and what is hard for it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hipattn
from hipattn import Device, DeviceTensor, ScoreMod, Stream
from hipattn.attn import reference
from hipattn.kernels import flash_fwd
from hipattn.runtime import bindings
from tests.helpers.features import FEATURES, Sizes
from tests.helpers.flash import Expected, check_flash, flash, skip_unless_served
from tests.helpers.inputs import qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import same_bits
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import DTYPES, FLOOR, attention_bound, magnitude

# flash-attention's own sizes.
HEAD_DIMS = (32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256)
LARGE = ((1024, 1024), (1023, 1024), (1024, 1023), (2048, 2048))
LENGTHS = (
    *((113, 203), (128, 217), (113, 211), (108, 256), (256, 512), (512, 256), *LARGE),
    *((1, 239), (3, 799), (127, 512), (127, 513), (1, 147)),
)
HEADS = ((9, 9), (9, 3), (9, 1))


@pytest.mark.parametrize("head_dim", [1, 2, 7, *HEAD_DIMS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_is_served(device: Device, dtype: np.dtype, head_dim: int) -> None:
    assert flash_fwd.supports(device, dtype, head_dim, head_dim) is None


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)  # bfloat16 meets each below
@pytest.mark.parametrize("feature", FEATURES)
def test_each_option(stream: Stream, feature: str, dtype: np.dtype) -> None:
    sizes = {"batch": 2, "seq_q": 150, "seq_k": 170}  # several tiles of each, all of them cut
    q, k, v = qkv(**sizes, heads_q=4, heads_kv=2, head_dim=40, value_dim=24, dtype=dtype)
    options = FEATURES[feature](Sizes(**sizes, heads=4, dtype=dtype))
    check_flash(stream, q, k, v, **options)


@pytest.mark.parametrize("feature", FEATURES)
def test_each_option_with_fewer_keys_than_queries(stream: Stream, feature: str) -> None:
    sizes = {"batch": 2, "seq_q": 90, "seq_k": 37}
    q, k, v = qkv(**sizes, heads_q=4, heads_kv=2, head_dim=40, value_dim=24, dtype=np.float16)
    check_flash(stream, q, k, v, **FEATURES[feature](Sizes(**sizes, heads=4, dtype=q.dtype)))


# What is compiled in: each pair of these choices is tested together. Each kernel runs over several lengths.
CHOICES = {
    "head_dim": HEAD_DIMS,
    "dtype": DTYPES,
    "heads": ((3, 3), (6, 2), (5, 1)),  # fewer than HEADS: the reference takes as long as there are
    "causal": ("plain", "causal"),
    "window": ("plain", "window", "left"),
    "bias": ("plain", "bias", "bias in dtype"),
    "mask": ("plain", "mask", "padding mask"),
    "value_dim": (None, 72),
    **{name: ("plain", name) for name in ("softcap", "alibi", "sinks", "score_mod", "mask_mod", "negative scale")},
    "lse": (True, False),
    "layout": ("bshd", "bhsd"),
}
COMBINATIONS = pairwise(CHOICES)
SMALL = [lengths for lengths in LENGTHS if lengths not in LARGE]


def lengths_of(number: int) -> list[tuple[int, int]]:
    """Return some lengths, so that each head_dim meets them all."""
    same = [n for n, row in enumerate(COMBINATIONS) if row["head_dim"] == COMBINATIONS[number]["head_dim"]]
    return SMALL[same.index(number) :: len(same)]


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_options_together(number: int) -> None:
    """On all devices, against one reference, which takes the longest."""
    row = COMBINATIONS[number]
    heads_q, heads_kv = row["heads"]
    dtype = row["dtype"]
    for seq_q, seq_k in lengths_of(number):
        q, k, v = qkv(1, seq_q, seq_k, heads_q, heads_kv, row["head_dim"], row["value_dim"], dtype, seed=number)
        options: dict[str, Any] = {}
        for name in CHOICES:
            if row[name] in FEATURES:
                options |= FEATURES[row[name]](Sizes(1, heads_q, seq_q, seq_k, dtype))
        if row["layout"] == "bhsd":
            q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))
        options["layout"] = row["layout"]
        expected = Expected.of(q, k, v, **options)
        for index in range(Device.count()):
            with Stream(Device(index)) as stream:
                check_flash(stream, q, k, v, expected=expected, return_lse=row["lse"], **options)


@pytest.mark.grid
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flash_attention_s_grid(
    stream: Stream, dtype: np.dtype, head_dim: int, lengths: tuple[int, int], heads: tuple[int, int], causal: bool
) -> None:
    """By flash-attention's own rule: an error of twice the low-precision formula's, and 1e-5."""
    q, k, v = qkv(2, *lengths, *heads, head_dim, dtype=dtype)
    expected, lse = reference.attention(q, k, v, causal=causal, return_lse=True)
    low = reference.attention(q, k, v, causal=causal, dtype=dtype).astype(np.float64)
    bound = 2 * float(np.abs(low - expected).max()) + 1e-5
    check_flash(stream, q, k, v, causal=causal, expected=Expected(expected, lse, bound))


# ---- sizes, layouts, memory ----


@pytest.mark.parametrize("dims", [(1, 1), (3, 5), (17, 130), (130, 17), (256, 8), (64, 256)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_head_sizes(stream: Stream, dtype: Any, dims: tuple[int, int]) -> None:
    q, k, v = qkv(2, 33, 70, 4, 2, *dims, dtype)
    check_flash(stream, q, k, v, causal=True)


@pytest.mark.parametrize("lengths", list(itertools.product((1, 2, 31, 64, 129), (1, 3, 32, 65, 128))), ids=str)
def test_any_lengths(stream: Stream, lengths: tuple[int, int]) -> None:
    q, k, v = qkv(2, *lengths, 2, 1, 32, dtype=np.float16)
    for causal in (False, True):
        check_flash(stream, q, k, v, causal=causal)


@pytest.mark.usefixtures("_fresh_plans")
@pytest.mark.parametrize("section", [1, 2, 3, 5, 6])
def test_heads_in_sections(stream: Stream, monkeypatch: pytest.MonkeyPatch, section: int) -> None:
    """Six heads and batch entries, of which so many are visited at a time, and at last as many as are left."""
    monkeypatch.setattr(flash_fwd, "_LEAST_BLOCKS", 0)
    monkeypatch.setattr(flash_fwd, "_CACHED_BYTES", section * 150 * (32 + 32) * 2)
    check_flash(stream, *qkv(2, 300, 150, 3, 3, 32, dtype=np.float16), causal=True)


@pytest.mark.parametrize("heads", [(1, 1), (5, 5), (6, 3), (8, 1)], ids=str)
def test_any_heads(stream: Stream, heads: tuple[int, int]) -> None:
    q, k, v = qkv(3, 20, 37, *heads, 32, dtype=np.float16)
    check_flash(stream, q, k, v)


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 0},
        {"seq_q": 0},
        {"seq_k": 0},
        {"seq_q": 0, "seq_k": 0},
        {"heads_q": 0, "heads_kv": 0},
        {"heads_q": 0, "heads_kv": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_empty(stream: Stream, dtype: Any, sizes: dict[str, int]) -> None:
    at = {"batch": 2, "seq_q": 5, "seq_k": 7, "heads_q": 4, "heads_kv": 2} | sizes
    q, k, v = qkv(**at, head_dim=40, dtype=dtype)
    check_flash(stream, q, k, v, causal=True)
    check_flash(stream, q, k, v, sinks=np.ones(at["heads_q"], np.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_a_packed_tensor(stream: Stream, dtype: np.dtype) -> None:
    packed = np.random.default_rng(0).standard_normal((2, 70, 4, 3, 40)).astype(dtype)
    (tensor,) = upload(stream, packed)
    arrays = [packed[..., i, :] for i in range(3)]
    skip_unless_served(stream, dtype, 40)
    out, lse = flash(stream, *(tensor[..., i, :] for i in range(3)), causal=True)
    expected, expected_lse = reference.attention(*arrays, causal=True, return_lse=True)
    assert_close(out, expected, atol=attention_bound(*arrays, causal=True))
    assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)


def test_the_output_beside_the_inputs_in_one_tensor(stream: Stream) -> None:
    packed = np.random.default_rng(0).standard_normal((2, 40, 3, 4, 32)).astype(np.float16)
    skip_unless_served(stream, np.float16, 32)
    (tensor,) = upload(stream, packed)
    q, k, v, out = (tensor[..., i, :] for i in range(4))
    hipattn.attention(q, k, v, out=out, method="flash", stream=stream)
    arrays = [packed[..., i, :] for i in range(3)]
    now = tensor.numpy()
    assert_close(now[..., 3, :], reference.attention(*arrays), atol=attention_bound(*arrays))
    assert same_bits(now[..., :3, :], packed[..., :3, :])


@pytest.mark.parametrize("before", [0, 1, 2, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_at_any_alignment_and_distance(stream: Stream, dtype: Any, before: int) -> None:
    arrays = qkv(2, 33, 50, 4, 2, 32, 24, dtype)
    skip_unless_served(stream, dtype, 32, 24)
    views = []
    for array in arrays:
        wide = np.full((*array.shape[:3], array.shape[3] + before + 2), np.nan, dtype)
        wide[..., before:-2] = array
        views.append(upload(stream, wide)[0][..., before:-2])
    out, _ = flash(stream, *views, causal=True)
    assert_close(out, reference.attention(*arrays, causal=True), atol=attention_bound(*arrays, causal=True))


def test_keys_that_all_heads_and_entries_share(stream: Stream) -> None:
    """Strides of 0: k and v repeat over batch and heads without being copied."""
    q, k, v = qkv(3, 33, 50, 4, 4, 32, dtype=np.float16)
    skip_unless_served(stream, np.float16, 32)
    repeated = [upload(stream, x[:1, :, :1])[0].broadcast_to(x.shape) for x in (k, v)]
    out, _ = flash(stream, upload(stream, q)[0], *repeated)
    k, v = (np.broadcast_to(x[:1, :, :1], x.shape) for x in (k, v))
    assert_close(out, reference.attention(q, k, v), atol=attention_bound(q, k, v))


def test_a_last_dimension_of_one_has_any_stride(stream: Stream) -> None:
    q, k, v = qkv(2, 9, 9, 2, 2, 4, dtype=np.float16)
    skip_unless_served(stream, np.float16, 1)
    tensors = [tensor[..., 1::4] for tensor in upload(stream, q, k, v)]
    assert tensors[0].strides[3] == 4
    out, _ = flash(stream, *tensors)
    arrays = [x[..., 1::4] for x in (q, k, v)]
    assert_close(out, reference.attention(*arrays), atol=attention_bound(*arrays))


@pytest.mark.parametrize("feature", ["bias", "mask"])
def test_strided_bias_and_mask(stream: Stream, feature: str) -> None:
    at = Sizes(2, 4, 33, 50, np.dtype(np.float16))
    q, k, v = qkv(2, 33, 50, 4, 2, 32, dtype=at.dtype)
    skip_unless_served(stream, at.dtype, 32)
    whole = FEATURES[feature](Sizes(2, 8, 50 * 2, 33, at.dtype))[feature]
    (tensor,) = upload(stream, whole)
    views = [x[:, 1::2, ::2] for x in (whole, tensor)]
    options = {feature: views[0].transpose(0, 1, 3, 2)}
    out, _ = flash(stream, q, k, v, **{feature: views[1].transpose(0, 1, 3, 2)})
    expected = reference.attention(q, k, v, **options)
    assert_close(out, expected, atol=attention_bound(q, k, v, expected=expected, **options))


def test_a_mask_of_bytes(stream: Stream) -> None:
    q, k, v = qkv(2, 33, 50, 2, 2, 32, dtype=np.float16)
    skip_unless_served(stream, np.float16, 32)
    mask = np.random.default_rng(0).integers(0, 3, (33, 50)).astype(np.uint8) * 77
    out, _ = flash(stream, q, k, v, mask=mask)
    assert_close(out, reference.attention(q, k, v, mask=mask != 0), atol=attention_bound(q, k, v, mask=mask != 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_are_bit_identical(stream: Stream, dtype: np.dtype) -> None:
    q, k, v = qkv(2, 100, 150, 4, 2, 64, dtype=dtype)
    skip_unless_served(stream, dtype, 64)
    first, first_lse = flash(stream, q, k, v, causal=True)
    for _ in range(3):
        out, lse = flash(stream, q, k, v, causal=True)
        assert same_bits(out, first)
        assert same_bits(lse, first_lse)


@pytest.mark.grid
@pytest.mark.skipif(bindings.platform().simulated, reason="takes more memory than a simulated device should")
@pytest.mark.parametrize("axis", ["batch", "row", "head"])
def test_offsets_beyond_2_31_elements(stream: Stream, axis: str) -> None:
    arrays = qkv(2, 70, 70, 2, 2, 32, dtype=np.float16)
    far = 2**31 + 2**20
    step = {"batch": far, "row": -(-far // 69) // 64 * 64 + 64, "head": far}[axis]
    place = {"batch": 0, "row": 1, "head": 2}[axis]
    strides = [70 * 64, 64, 32, 1]
    strides[place] = step
    if axis == "row":
        strides[0] = 70 * step
    shape = arrays[0].shape
    size = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    tensors = []
    for array in (*arrays, np.full(shape, np.nan, np.float16)):
        tensor = DeviceTensor(DeviceTensor.empty((size,), np.float16, stream=stream).buffer, shape, np.float16, strides)
        for index in np.ndindex(*shape[:3]):
            tensor[index].copy_from(array[index], stream=stream)
        tensors.append(tensor)
    hipattn.attention(*tensors[:3], out=tensors[3], causal=True, method="flash", stream=stream)
    expected = reference.attention(*arrays, causal=True)
    bound = attention_bound(*arrays, expected=expected, causal=True)
    for index in np.ndindex(*shape[:3]):
        assert_close(tensors[3][index].numpy(), expected[index], atol=bound)


# ---- numbers that are hard ----


@pytest.mark.parametrize("depth", [20, 100, 400, 500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_negative_logits(stream: Stream, dtype: np.dtype, depth: int) -> None:
    """Logits of -1e4 to -2.5e5 that differ by a few: all exact in float32, so that nothing may be lost."""
    rng = np.random.default_rng(0)
    q, k, _ = qkv(2, 40, 100, 2, 1, 64)
    v = rng.standard_normal((2, 100, 1, 64)).astype(dtype)
    q[...], k[...] = 8, -depth
    q[..., -1], k[..., -1] = 1, rng.integers(0, 6, k.shape[:3])
    q, k = q.astype(dtype), k.astype(dtype)
    skip_unless_served(stream, dtype, 64)
    out, lse = flash(stream, q, k, v, scale=1.0)
    expected, expected_lse = reference.attention(q, k, v, scale=1.0, return_lse=True)
    assert expected_lse.max() < -1e4 + 100
    # Not by the low-precision formula, which would round the logits to the dtype.
    assert_close(out, expected, atol=2 * FLOOR[dtype] * magnitude(expected))
    assert_close(lse, expected_lse, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_of_both_signs(stream: Stream, dtype: np.dtype) -> None:
    q, k, v = qkv(2, 40, 100, 2, 1, 64, dtype=dtype)
    check_flash(stream, q * dtype.type(20), k * dtype.type(20), v)


@pytest.mark.parametrize("scale", [0.0, 1e-46, -1e-46, 1e-40])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_scale_that_float32_cannot_hold(stream: Stream, dtype: Any, scale: float) -> None:
    q, k, v = qkv(2, 40, 50, 2, 1, 32, dtype=dtype)
    check_flash(stream, q, k, v, causal=True, scale=scale)


@pytest.mark.parametrize("softcap", [1.0, 1e3, 1e5, 1e7])
def test_a_cap_far_above_the_scores(stream: Stream, softcap: float) -> None:
    q, k, v = qkv(2, 40, 50, 2, 1, 64, dtype=np.float32)
    check_flash(stream, 2 * q, 2 * k, v, softcap=softcap)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_visible_key_gives_its_value(stream: Stream, dtype: np.dtype) -> None:
    q, k, v = qkv(2, 70, 150, 2, 2, 32, dtype=dtype)
    skip_unless_served(stream, dtype, 32)
    seen = np.random.default_rng(0).integers(0, 150, (2, 2, 70))
    mask = np.arange(150) == seen[..., None]
    out, _ = flash(stream, q, k, v, mask=mask)
    expected = np.stack([[v[b, seen[b, h], h] for h in range(2)] for b in range(2)]).swapaxes(1, 2)
    # In float32 the weight is 1 within a rounding or two of the exponential.
    assert_close(out, expected, rtol=2.0**-21 if dtype == np.float32 else 0)


@pytest.mark.parametrize(
    ("how", "dtype"),
    [(how, np.float16) for how in ("mask", "bias", "causal", "window", "mask_mod", "score_mod")]
    + [("causal", np.float32)],
)
def test_queries_without_a_key_give_zero(stream: Stream, dtype: Any, how: str) -> None:
    q, k, v = qkv(2, 150, 60, 2, 2, 32, dtype=dtype)
    skip_unless_served(stream, dtype, 32)
    hidden = np.arange(150) < 90  # as with causal
    options: dict[str, Any] = {
        "mask": {"mask": np.broadcast_to(~hidden[:, None], (150, 60))},
        "bias": {"bias": np.where(hidden, -np.inf, 0).astype(np.float32)[:, None]},
        "causal": {"causal": True},
        "window": {"window": (60, 0)},
        "mask_mod": {"mask_mod": hipattn.MaskMod("q >= 90")},
        "score_mod": {"score_mod": ScoreMod("q < 90 ? -1.0f / 0.0f : score")},
    }[how]
    out, lse = flash(stream, q, k, v, **options)
    assert (out[:, :90] == 0).all()
    assert (lse[..., :90] == -np.inf).all()
    assert np.isfinite(lse[..., 90:]).all()
    assert (out[:, 90:] != 0).any(axis=-1).all()
    out, lse = flash(stream, q, k, v, sinks=np.array([1.5, -2], np.float32), **options)
    assert (out[:, :90] == 0).all()
    assert_close(lse[..., :90], np.broadcast_to([[1.5], [-2]], (2, 2, 90)), rtol=1e-6)


BAD = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("feature", ["causal window", "mask", "plain"])
def test_nan_and_inf_reach_the_rows_that_see_them(
    stream: Stream, where: str, feature: str, dtype: np.dtype, bad: float
) -> None:
    at = Sizes(2, 4, 70, 90, dtype)
    arrays = dict(zip("qkv", qkv(2, 70, 90, 4, 2, 32, dtype=dtype), strict=True))
    skip_unless_served(stream, dtype, 32)
    options = FEATURES[feature](at)
    clean, clean_lse = flash(stream, **arrays, **options)
    row = 41
    arrays[where][1, row, 1, 5] = bad
    out, lse = flash(stream, **arrays, **options)
    expected, expected_lse = reference.attention(**arrays, **options, return_lse=True)
    touched = ~np.isfinite(expected)
    heads = [1] if where == "q" else [2, 3]
    assert touched[1][:, heads].any()
    if where == "v":
        assert not touched[..., np.arange(32) != 5].any()
    # The rows that it does not reach are what they were, bit for bit.
    reached = np.zeros(expected.shape[:3], bool)
    if where == "q":
        reached[1, row, 1] = True
    else:
        mask = options.get("mask", np.ones((2, 4, 70, 90), bool))[1, :, :, row]
        position = np.arange(70) + 20
        if feature == "causal window":
            mask = np.broadcast_to((position >= row) & (position - row <= 90 // 4), (4, 70))
        reached[1, :, 2:] = mask.T[:, 2:]
    assert same_bits(out[~reached], clean[~reached])
    np.testing.assert_array_equal(lse.swapaxes(1, 2)[~reached], clean_lse.swapaxes(1, 2)[~reached])
    if where == "v":
        others = np.arange(32) != 5
        assert same_bits(out[..., others], clean[..., others])
        assert_close(out[..., 5], expected[..., 5], atol=attention_bound(**arrays, expected=expected, **options))
        assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)
    elif np.isnan(bad):
        assert np.isnan(out[reached]).all()


# ---- properties ----

features = st.lists(st.sampled_from([name for name in FEATURES if name != "all"]), max_size=4, unique=True)


@settings(max_examples=6)
@given(
    features=features,
    lengths=st.tuples(st.integers(1, 140), st.integers(1, 140)),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dims=st.sampled_from([(32, 32), (24, 56), (96, 64)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_any_options_and_sizes(
    device: Device,
    features: list[str],
    lengths: tuple[int, int],
    heads: tuple[int, int],
    dims: tuple[int, int],
    dtype: np.dtype,
    seed: int,
) -> None:
    if flash_fwd.supports(device, dtype, *dims):
        return
    heads_q, heads_kv = heads[0] * heads[1], heads[1]
    options: dict[str, Any] = {}
    for name in features:
        options |= FEATURES[name](Sizes(2, heads_q, *lengths, dtype))
    q, k, v = qkv(2, *lengths, heads_q, heads_kv, *dims, dtype, seed)
    with Stream(device) as stream:
        check_flash(stream, q, k, v, **options)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_outputs_do_not_depend_on_keys_that_are_not_seen(device: Device, seed: int, data: st.DataObject) -> None:
    dtype = np.dtype(np.float16)
    if flash_fwd.supports(device, dtype, 32, 32):
        return
    q, k, v = qkv(1, 70, 90, 2, 1, 32, dtype=dtype, seed=seed)
    key = data.draw(st.integers(0, 89), label="key")
    mask = np.random.default_rng(seed).random((70, 90)) < 0.5
    mask[:, key] = False
    with Stream(device) as stream:
        before, _ = flash(stream, q, k, v, mask=mask)
        k[:, key], v[:, key] = np.nan, np.inf
        after, _ = flash(stream, q, k, v, mask=mask)
    assert same_bits(before, after)


@pytest.mark.parametrize("softcap", [1e3, 1e6, 1e30])
def test_a_softcap_far_above_the_scores_changes_nothing(stream: Stream, softcap: float) -> None:
    q, k, v = qkv(2, 40, 70, 4, 2, 32, dtype=np.float32)
    check_flash(stream, q, k, v, softcap=softcap)


@pytest.mark.parametrize(("name", "value"), [("scale", 1e7), ("scale", -1e30), ("softcap", 1e31)])
def test_numbers_that_scores_cannot_take(name: str, value: float) -> None:
    q, k, v = qkv(1, 4, 4, 1, 1, 8, dtype=np.float32)
    with pytest.raises(hipattn.ArgumentError, match=f"{name} is .*; it takes a (positive )?number of at most"):
        hipattn.attention(q, k, v, **{name: value})
