"""The layers over mma.sync on a simulated GPU: the kernels as they are, NVIDIA's instructions as plain C++."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipattn import Device, Stream
from hipattn.compiler import specialise
from hipattn.kernels import flash_decode, flash_fwd, float8
from hipattn.kernels.flash_tiles import Tiles, _nvidia_float_tiles, _nvidia_tiles
from hipattn.runtime import bindings
from tests.helpers.decode import Caches, check_decode, decode
from tests.helpers.features import FEATURES, Sizes
from tests.helpers.flash import Expected, check_flash
from tests.helpers.inputs import qkv
from tests.helpers.padded import same_bits
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import BFLOAT16

F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
INSTRUCTIONS = Path(__file__).parents[1] / "helpers" / "ptx.h"


@pytest.fixture(params=[1, 2, 3], ids=["one stage", "two stages", "three stages"])
def stages(request: pytest.FixtureRequest) -> int:
    """Tiles of keys that a block of flash_decode holds, if it has not to convert them."""
    return request.param


@pytest.fixture
def stream(stages: int, monkeypatch: pytest.MonkeyPatch, _fresh_plans: None) -> Iterator[Stream]:
    """Return a stream on which the fused kernels are those of NVIDIA's chips, with tiles small enough for the chip."""
    devices = [device for device in map(Device, range(Device.count())) if device.wave_size == 32]
    if not bindings.platform().simulated or not devices:
        pytest.skip("it takes a simulated GPU with waves of 32 lanes")

    def choose(arch: str, dtype: str, head_dim: int, value_dim: int) -> Tiles:
        largest = max(head_dim, value_dim)
        if dtype == "float32":
            return _nvidia_float_tiles(head_dim, value_dim, 2, 32 if largest <= 64 else 16, 32 if largest <= 64 else 16)
        return _nvidia_tiles(head_dim, value_dim, *((4, 32, 32) if largest <= 64 else (2, 32, 16)))

    def choose_decode(
        arch: str,
        dtype: str,
        head_dim: int,
        value_dim: int,
        rows: int,
        float8: bool = False,
        splits: int = 1,
    ) -> Tiles:
        largest = max(head_dim, value_dim)
        waves, block_n = 4 if rows > 32 and largest <= 128 and stages < 3 else 2, 32 if largest <= 64 else 16
        held = 1 if float8 else min(stages, 2 if largest > 128 else 3)
        return _nvidia_tiles(head_dim, value_dim, waves, 16, block_n, stages=held, float8=float8)

    texts = {**specialise.headers(), "include/ptx.h": INSTRUCTIONS.read_text()}
    monkeypatch.setattr(specialise, "headers", lambda: texts)
    monkeypatch.setattr(flash_fwd, "choose", choose)
    monkeypatch.setattr(flash_decode, "choose_decode", choose_decode)
    with Stream(devices[0]) as stream:
        yield stream


SHAPES = pairwise(
    {
        "stages": [1, 2, 3, "float8"],
        "dims": [(64, 64), (40, 24), (128, 64), (128, 128), (7, 200), (200, 40)],
        "heads": [(2, 2), (8, 2), (7, 1)],
        "seq_q": [1, 5, 20],
        "dtype": [F16, BFLOAT16],
        "page_size": [None, 1, 3, 16, 24, 128],  # that divide a tile, or are its multiples, or neither
        "num_splits": [1, 3],
        "lengths": [(0, 1, 31, 33), (130, 64, 0, 97)],
    }
)


@pytest.mark.parametrize(
    ("stages", "shape"),
    [(1 if shape["stages"] == "float8" else shape["stages"], shape) for shape in SHAPES],
    indirect=["stages"],
    ids=["-".join(str(x) for x in shape.values()) for shape in SHAPES],
)
def test_decoding(stream: Stream, shape: dict[str, Any]) -> None:
    caches = Caches.random(shape["lengths"], shape["seq_q"], shape["heads"], shape["dims"], shape["dtype"])
    if shape["page_size"]:
        caches = caches.paged(shape["page_size"])
    if shape["stages"] == "float8":
        caches = caches.in_float8(float8.e4m3(stream.device.arch))
    check_decode(stream, caches, num_splits=shape["num_splits"])


@pytest.mark.parametrize("feature", ["window", "sinks", "mask", "negative scale"])
def test_options_of_decoding(stream: Stream, feature: str) -> None:
    caches = Caches.random((70, 0, 5, 133), 3, (4, 2), (64, 64))
    batch, seq_q, heads, _ = caches.q.shape
    check_decode(stream, caches, **FEATURES[feature](Sizes(batch, heads, seq_q, caches.capacity, F16)))


@pytest.mark.parametrize("dtype", [F16, BFLOAT16], ids=str)
@pytest.mark.parametrize("lengths", [(20, 31), (60, 64), (90, 77)])  # one tile to three: a block walks twice
def test_what_is_not_finite_stays_where_it_is_seen(
    stream: Stream, lengths: tuple[int, int], dtype: np.dtype[Any]
) -> None:
    caches = Caches.random(lengths, 4, (4, 2), (64, 64), dtype)
    plain, _ = decode(stream, caches, num_splits=1)
    last = lengths[1] - 1
    caches.v[1, last, 1, 5] = np.nan  # for the last query
    caches.v[1, 3, 0, 7] = -np.inf  # for all queries of its heads
    out, _ = decode(stream, caches, num_splits=1)
    assert np.isnan(out[1, 3, 2:, 5]).all()
    assert np.isneginf(out[1, :, :2, 7]).all()
    rest = np.isfinite(out)
    assert np.count_nonzero(~rest) == 2 + 8
    assert same_bits(out[rest], plain[rest])


@pytest.mark.parametrize("stages", [1], indirect=True, ids=[""])
@pytest.mark.parametrize("feature", ["plain", "causal", "window", "bias", "mask_mod", "negative scale"])
@pytest.mark.parametrize("dims", [(64, 64), (40, 24), (128, 96)])
def test_forward(stream: Stream, feature: str, dims: tuple[int, int]) -> None:
    sizes = {"batch": 2, "seq_q": 70, "seq_k": 110}
    dtype = BFLOAT16 if feature == "causal" else F16
    q, k, v = qkv(**sizes, heads_q=4, heads_kv=2, head_dim=dims[0], value_dim=dims[1], dtype=dtype)
    check_flash(stream, q, k, v, **FEATURES[feature](Sizes(**sizes, heads=4, dtype=dtype)))


@pytest.mark.parametrize("stages", [1], indirect=True, ids=[""])
@pytest.mark.parametrize("feature", ["plain", "causal", "window", "bias", "mask_mod", "sinks", "negative scale"])
@pytest.mark.parametrize("dims", [(64, 64), (40, 24), (7, 130), (128, 96)])
def test_forward_in_float32(stream: Stream, feature: str, dims: tuple[int, int]) -> None:
    sizes = {"batch": 2, "seq_q": 70, "seq_k": 110}
    q, k, v = qkv(**sizes, heads_q=4, heads_kv=2, head_dim=dims[0], value_dim=dims[1], dtype=F32)
    check_flash(stream, q, k, v, **FEATURES[feature](Sizes(**sizes, heads=4, dtype=F32)))


@pytest.mark.parametrize("stages", [1], indirect=True, ids=[""])
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_in_float32(stream: Stream, which: str, value: float) -> None:
    """It is one element of its row; the other operand's are of many digits and of few."""
    q, k, v = qkv(1, 40, 70, 2, 2, 64, dtype=F32)
    q[:, ::2], k[:, ::2] = np.sign(q[:, ::2]), np.sign(k[:, ::2])
    {"q": q, "k": k, "v": v}[which][0, 7, 1, 5] = value
    expected = Expected.of(q, k, v)
    assert not np.isfinite(expected.out).all()
    check_flash(stream, q, k, v, expected=expected)
