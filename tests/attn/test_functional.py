"""attention(): arrays of each library in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import hipattn
from hipattn import ArgumentError, DeviceTensor, KVCache, Stream
from hipattn.attn import reference
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.inputs import qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import BFLOAT16, DTYPES, attention_bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_numpy(dtype: np.dtype, layout: str) -> None:
    q, k, v = qkv(heads_kv=2, seq_k=40, dtype=dtype)
    if layout == "bhsd":
        q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))  # strided, too
    out, lse = hipattn.attention(q, k, v, causal=True, layout=layout, return_lse=True)
    expected, expected_lse = reference.attention(q, k, v, causal=True, layout=layout, return_lse=True)
    assert isinstance(out, np.ndarray)
    assert out.dtype == dtype
    assert_close(out, expected, atol=attention_bound(q, k, v, causal=True, layout=layout))
    assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)


def test_numpy_out() -> None:
    q, k, v = qkv()
    wide = np.full((*q.shape[:3], 2 * q.shape[3]), np.nan, np.float32)
    out = wide[..., ::2]
    assert hipattn.attention(q, k, v, out=out) is out
    assert_close(out, reference.attention(q, k, v), atol=attention_bound(q, k, v))
    assert np.isnan(wide[..., 1::2]).all()


def test_device_tensors(stream: Stream) -> None:
    arrays = qkv()
    tensors = upload(stream, *arrays)
    out = hipattn.attention(*tensors, stream=stream)
    assert isinstance(out, DeviceTensor)
    assert_close(out.numpy(), reference.attention(*arrays), atol=attention_bound(*arrays))
    again = hipattn.attention(*tensors)  # the default stream of the tensors' own device
    assert again.device is stream.device
    assert again.numpy().tobytes() == out.numpy().tobytes()


def test_where_q_is_the_result_goes(stream: Stream) -> None:
    q, k, v = qkv()
    expected = reference.attention(q, k, v)
    (on_device,) = upload(stream, q)
    assert isinstance(hipattn.attention(on_device, k, v, stream=stream), DeviceTensor)
    assert_close(hipattn.attention(q, *upload(stream, k, v), stream=stream), expected, atol=attention_bound(q, k, v))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else name
    arrays = qkv(heads_kv=2, dtype=dtype)
    tensors = [torch.from_numpy(array.astype(np.float32)).to(getattr(torch, name)) for array in arrays]
    expected = reference.attention(*arrays, causal=True)
    bound = attention_bound(*arrays, causal=True)
    out, lse = hipattn.attention(*tensors, causal=True, return_lse=True)
    assert isinstance(out, torch.Tensor)
    assert isinstance(lse, torch.Tensor)
    assert out.dtype == tensors[0].dtype
    assert_close(out.float().numpy(), expected, atol=bound)
    target = torch.full_like(tensors[0], float("nan"))
    assert hipattn.attention(*tensors, causal=True, out=target) is target
    assert_close(target.float().numpy(), expected, atol=bound)


def test_torch_keeps_what_is_on_the_device() -> None:
    torch = pytest.importorskip("torch")
    if not bindings.platform().simulated:
        pytest.skip("needs a torch that sees the device's memory, as torch on the CPU does the simulator's")
    arrays = qkv()
    with Stream() as stream:
        tensors = [torch.from_dlpack(tensor) for tensor in upload(stream, *arrays)]
        with bindings.record() as calls:
            out = hipattn.attention(*tensors)
        assert not [name for name, _ in calls if "Memcpy" in name]
        assert isinstance(out, torch.Tensor)
        assert_close(out.numpy(), reference.attention(*arrays), atol=attention_bound(*arrays))


def test_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    arrays = qkv()
    out = hipattn.attention(*(cupy.asarray(array) for array in arrays))
    assert isinstance(out, cupy.ndarray)
    assert_close(cupy.asnumpy(out), reference.attention(*arrays), atol=attention_bound(*arrays))


def bad_arguments() -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong → (the arguments that differ, what the message names)."""
    q, k, v = qkv()
    return {
        "float64": ({"v": v.astype(np.float64)}, "v is float64; accepted: float32, float16, bfloat16"),
        "int": ({"q": q.astype(np.int32)}, "q is int32"),
        "rank": ({"k": k[0]}, "k has shape"),
        "None": ({"k": None}, "k is"),
        "text": ({"q": "queries"}, "q is"),
        "layout": ({"layout": "BSHD"}, "layout is 'BSHD'; accepted: 'bshd', 'bhsd'"),
        "shape of out": ({"out": q[:, 1:]}, "out is float32"),
        "dtype of out": ({"out": q.astype(np.float16)}, "out is float16"),
        "heads": ({"k": k[:, :, :3], "v": v[:, :, :3]}, "4 heads"),
    }


@pytest.mark.parametrize("case", bad_arguments())
def test_bad_arguments(case: str) -> None:
    changed, message = bad_arguments()[case]
    q, k, v = qkv()
    before = live()
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        hipattn.attention(**({"q": q, "k": k, "v": v} | changed))
    assert live() == before
    assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


def test_out_must_be_where_q_is(stream: Stream) -> None:
    q, k, v = qkv()
    (on_device,) = upload(stream, q)
    with pytest.raises(ArgumentError, match="out is on the device; q is in host memory"):
        hipattn.attention(q, k, v, out=on_device, stream=stream)
    with pytest.raises(ArgumentError, match="out is in host memory; q is on the device"):
        hipattn.attention(on_device, k, v, out=q, stream=stream)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_out_may_not_share_memory_with_what_is_read(stream: Stream, name: str) -> None:
    tensors = dict(zip("qkv", upload(stream, *qkv()), strict=True))
    with bindings.record() as calls, pytest.raises(ArgumentError, match=f"out shares memory with {name}"):
        hipattn.attention(**tensors, out=tensors[name], stream=stream)
    assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


def test_out_beside_v_in_one_buffer(stream: Stream) -> None:
    """Views whose address ranges interleave, as those of packed QKV do, share no element."""
    rng = np.random.default_rng(0)
    packed = rng.standard_normal((2, 20, 4, 3, 16)).astype(np.float32)
    (tensor,) = upload(stream, packed)
    q, k, v, out = (tensor[:, :, i] for i in range(4))
    hipattn.attention(q, k, v, out=out, stream=stream)
    arrays = [packed[:, :, i] for i in range(3)]
    assert_close(out.numpy(), reference.attention(*arrays), atol=attention_bound(*arrays))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"causal": "false"}, "causal is 'false'; it takes True or False"),
        ({"return_lse": "no"}, "return_lse is 'no'; it takes True or False"),
        ({"out": np.broadcast_to(np.float32(0), qkv()[0].shape)}, "out is read-only"),
        ({"out": as_strided(np.zeros(1, np.float32), qkv()[0].shape, (0, 0, 0, 0))}, "out has .* elements overlap"),
        ({"scale": float("nan")}, "scale is nan; it takes a finite number"),
        ({"scale": 10**400}, "scale is 1000"),
        ({"stream": 0}, "stream is int; it takes a Stream"),
        ({"out": [1.0]}, "out is list; it takes an array"),
        ({"q": np.ma.masked_array(qkv()[0])}, "q is a masked array"),
    ],
)
def test_other_bad_arguments(changed: dict[str, Any], message: str) -> None:
    q, k, v = qkv()
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        hipattn.attention(**({"q": q, "k": k, "v": v} | changed))
    assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


def test_a_cache_or_another_object_is_no_array(stream: Stream) -> None:
    q, k, v = qkv()
    with KVCache(1, 1, 4, 1, 8, stream=stream) as cache:
        with pytest.raises(
            ArgumentError, match="k is a KVCache; it takes an array, and attention_decode takes a cache"
        ):
            hipattn.attention(q, cache, cache)
        with pytest.raises(ArgumentError, match="v is a KVCache"):
            hipattn.attention_varlen(q[0], k[0], cache, [0, 1], [0, 1])
    with pytest.raises(ArgumentError, match="k is float8_e4m3fn; accepted: float32"):  # which is for decoding alone
        hipattn.attention(q, k.astype(ml_dtypes.float8_e4m3fn), v)
    with pytest.raises(ArgumentError, match=r"k is \w*Path; it takes an array of numbers"):
        hipattn.attention(q, Path(), v)


def test_read_only_out_is_refused() -> None:
    q, k, v = qkv()
    out = np.zeros_like(q)
    out.flags.writeable = False
    with pytest.raises(ArgumentError, match="out is read-only"):
        hipattn.attention(q, k, v, out=out)


def test_out_of_any_strides_is_written() -> None:
    q, k, v = qkv()
    out = np.zeros((*q.shape[:3], 2 * q.shape[3]), np.float32)[:, ::-1, :, ::2]
    assert hipattn.attention(q, k, v, out=out) is out
    assert np.array_equal(out, hipattn.attention(q, k, v))


def test_numbers_of_bfloat16_are_numbers() -> None:
    q, k, v = qkv()
    sinks = np.linspace(-1, 1, q.shape[2]).astype(BFLOAT16)
    expected = hipattn.attention(q, k, v, sinks=sinks.astype(np.float32))
    assert np.array_equal(hipattn.attention(q, k, v, sinks=sinks), expected)


def test_torch_without_memory_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ArgumentError, match=r"q, a Tensor, cannot be exported: .* meta"):
        hipattn.attention(torch.zeros(1, 2, 2, 16, device="meta"), *qkv()[1:])


def test_torch_with_the_negative_bit_is_refused() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(array) for array in qkv())
    lazy = torch.complex(q, q).conj().imag
    with pytest.raises(ArgumentError, match="negative bit"):
        hipattn.attention(lazy, k, v)
