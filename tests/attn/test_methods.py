"""attention(): which method computes a call, what each refuses, and what happens when the fused kernel fails."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

import hipattn
from hipattn import ArgumentError, ClosedError, CompileError, Device, DeviceTensor, HipError, MaskMod, ScoreMod, Stream
from hipattn.attn import options as planning
from hipattn.attn import reference
from hipattn.attn.functional import fallback
from hipattn.compiler import loader
from hipattn.compiler.specialise import Specialisation
from hipattn.kernels import flash_decode, flash_fwd
from hipattn.runtime import Kernel, bindings
from hipattn.runtime.buffer import live
from tests.helpers.features import FEATURES, Sizes, of_reference
from tests.helpers.flash import skip_unless_served
from tests.helpers.inputs import qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import same_bits
from tests.helpers.tolerance import attention_bound

AT = Sizes(2, 4, 33, 33, np.dtype(np.float16))
Fail = Callable[[str], AbstractContextManager[None]]


def launched(calls: Any) -> list[str]:
    return [name for name, _ in calls if "Launch" in name or "Gemm" in name]


@pytest.fixture
def tensors(stream: Stream) -> Iterator[list[DeviceTensor]]:
    skip_unless_served(stream, np.float16, 40)
    made = upload(stream, *qkv(dtype=np.float16))
    yield made
    for tensor in made:
        tensor.buffer.close()


@pytest.fixture
def _unserved(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the fused kernel serve nothing."""
    planning.plan.cache_clear()
    monkeypatch.setattr(flash_fwd, "supports", lambda *_: "it is out of order")
    yield
    planning.plan.cache_clear()


# ---- which one ----


# The stages: two products of two batch entries each, the softmax, and a kernel that keeps NaN in their rows.
@pytest.mark.parametrize(("method", "launches"), [("auto", 1), ("flash", 1), ("staged", 6), ("reference", 0)])
def test_each_method(stream: Stream, tensors: list[DeviceTensor], method: str, launches: int) -> None:
    arrays = qkv(dtype=np.float16)
    with bindings.record() as made:
        out, lse = hipattn.attention(*tensors, causal=True, return_lse=True, method=method, stream=stream)
    assert len(launched(made)) == launches
    expected, expected_lse = reference.attention(*arrays, causal=True, return_lse=True)
    assert isinstance(out, DeviceTensor)
    assert_close(out.numpy(), expected, atol=attention_bound(*arrays, causal=True))
    assert_close(lse.numpy(), expected_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_unserved")
def test_auto_takes_the_stages_where_the_fused_kernel_cannot(stream: Stream) -> None:
    arrays = qkv(dtype=np.float16)
    with bindings.record() as calls:
        out = hipattn.attention(*upload(stream, *arrays), causal=True, stream=stream)
    assert any("Gemm" in name for name, _ in calls)
    assert_close(out.numpy(), reference.attention(*arrays, causal=True), atol=attention_bound(*arrays, causal=True))


@pytest.mark.usefixtures("_unserved")
@pytest.mark.parametrize("feature", ["window", "softcap", "alibi", "sinks", "bias", "mask", "score_mod", "mask_mod"])
def test_auto_says_what_neither_can(stream: Stream, feature: str) -> None:
    options = FEATURES[feature](AT)
    (name,) = options
    with pytest.raises(ArgumentError, match=f"{name} is given, which method 'flash' serves: it is out of order; 'ref"):
        hipattn.attention(*upload(stream, *qkv(dtype=np.float16)), stream=stream, **options)


@pytest.mark.usefixtures("_unserved")
def test_what_is_asked_for_is_not_replaced(stream: Stream) -> None:
    with pytest.raises(ArgumentError, match="method is 'flash': it is out of order; 'reference'"):
        hipattn.attention(*upload(stream, *qkv()), method="flash", stream=stream)


@pytest.mark.parametrize("feature", ["window", "softcap", "alibi", "sinks", "bias", "mask", "score_mod", "mask_mod"])
def test_the_stages_refuse_what_they_do_not_take(stream: Stream, feature: str) -> None:
    options = FEATURES[feature](AT)
    (name,) = options
    tensors = upload(stream, *qkv(dtype=np.float16))
    before = live()
    with bindings.record() as calls, pytest.raises(ArgumentError, match=f"{name} is given; method 'staged' takes"):
        hipattn.attention(*tensors, method="staged", stream=stream, **options)
    assert live() == before
    assert not launched(calls)


def test_large_heads_go_through_the_stages(stream: Stream) -> None:
    arrays = qkv(1, 9, 11, 2, 2, 2500, 2600)
    out = hipattn.attention(*upload(stream, *arrays), stream=stream)
    assert_close(out.numpy(), reference.attention(*arrays), atol=attention_bound(*arrays))
    with pytest.raises(ArgumentError, match=r"method is 'flash': .*2500"):
        hipattn.attention(*upload(stream, *arrays), method="flash", stream=stream)


# ---- the reference ----


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_the_reference_takes_every_option(feature: str, layout: str) -> None:
    arrays = qkv(heads_kv=2, dtype=np.float16)
    if layout == "bhsd":
        arrays = tuple(array.swapaxes(1, 2) for array in arrays)  # type: ignore[assignment]
    options = FEATURES[feature](AT) | {"layout": layout}
    with bindings.record() as calls:
        out, lse = hipattn.attention(*arrays, method="reference", return_lse=True, **options)
    assert not calls, "NumPy needs no device"
    expected, expected_lse = reference.attention(*arrays, return_lse=True, **of_reference(options))
    assert same_bits(out, expected.astype(np.float16))
    assert same_bits(lse, expected_lse)


def test_the_reference_over_tensors_of_the_device(stream: Stream) -> None:
    arrays = qkv(heads_kv=2, dtype=np.float16)
    options = FEATURES["all"](AT)
    expected = reference.attention(*arrays, **of_reference(options)).astype(np.float16)
    tensors = upload(stream, *arrays)
    target = upload(stream, np.full(expected.shape, np.nan, np.float16))[0]
    out = hipattn.attention(*tensors, out=target, method="reference", stream=stream, **options)
    assert out is target
    assert same_bits(out.numpy(), expected)
    mixed = hipattn.attention(arrays[0], *tensors[1:], method="reference", stream=stream, **options)
    assert same_bits(mixed, expected)


@pytest.mark.parametrize("name", ["score_mod", "mask_mod"])
def test_the_reference_needs_a_python_function(name: str) -> None:
    mod = {"score_mod": ScoreMod("score * 2"), "mask_mod": MaskMod("q < k")}[name]
    with pytest.raises(ArgumentError, match=f"{name} has no Python function"):
        hipattn.attention(*qkv(), method="reference", **{name: mod})


# ---- what no method takes ----


def bad_arguments() -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong → (the arguments, what the message says)."""
    half = np.zeros(4, np.float16)
    return {
        "method": ({"method": "fast"}, "method is 'fast'; accepted: 'auto', 'flash', 'staged', 'reference'"),
        "window of one": ({"window": (3,)}, r"window is \(3,\); it takes \(left, right\)"),
        "window below 0": ({"window": (-1, None)}, r"window is \(-1, None\)"),
        "window of floats": ({"window": (1.0, None)}, "window is"),
        "window of bools": ({"window": (True, None)}, "window is"),
        "window of text": ({"window": "12"}, "window is '12'"),
        "no window": ({"window": None}, "window is None"),
        "softcap 0": ({"softcap": 0}, "softcap is 0.0; it takes a positive number"),
        "softcap text": ({"softcap": "1"}, "softcap is '1'"),
        "softcap large": ({"softcap": 1e39}, "softcap is 1e.39; it takes a positive number of at most"),
        "softcap small": ({"softcap": 1e-39}, "softcap is 1e.39; it takes a positive number of at most"),
        "softcap nan": ({"softcap": float("nan")}, "softcap is nan"),
        "causal 1": ({"causal": 1}, "causal is 1; it takes True or False"),
        "scale list": ({"scale": [1]}, r"scale is \[1\]"),
        "scale True": ({"scale": True}, "scale is True"),
        "scale large": ({"scale": -1e39}, "scale is -1e.39; it takes a number of at most"),
        "layout": ({"layout": "sbhd"}, "layout is 'sbhd'"),
        "layout list": ({"layout": ["bshd"]}, "layout is"),
        "slopes shape": ({"alibi_slopes": np.zeros(3)}, r"alibi_slopes has shape \(3,\); it takes \(4,\) or \(2, 4\)"),
        "slopes text": ({"alibi_slopes": ["a"] * 4}, "alibi_slopes is .* it takes an array of real numbers"),
        "sinks shape": ({"sinks": np.zeros((2, 4))}, r"sinks has shape \(2, 4\); it takes \(4,\)"),
        "sinks ragged": ({"sinks": [[1], [2, 3]]}, "sinks is"),
        "bias shape": ({"bias": np.zeros((5, 33), np.float32)}, r"bias has shape \(5, 33\); .* \(2, 4, 33, 33\)"),
        "bias rank": ({"bias": np.zeros((1, 1, 1, 1, 33), np.float32)}, "bias has shape"),
        "bias float64": ({"bias": np.zeros(33)}, "bias is float64; accepted: float32"),
        "bias float16": ({"bias": np.zeros(33, np.float16)}, "bias is float16; accepted: float32"),
        "bias int": ({"bias": np.zeros(33, np.int32)}, "bias is int32; accepted: float32"),
        "mask shape": ({"mask": np.ones((33, 32), bool)}, r"mask has shape \(33, 32\)"),
        "mask float": ({"mask": np.ones((33, 33), np.float32)}, "mask is float32; accepted: bool, uint8"),
        "score_mod text": ({"score_mod": "score"}, "score_mod is str; it takes a ScoreMod"),
        "score_mod mask": ({"score_mod": MaskMod("q < k")}, "score_mod is MaskMod; it takes a ScoreMod"),
        "mask_mod function": ({"mask_mod": lambda b, h, q, k: q < k}, "mask_mod is function; it takes a MaskMod"),
        "out shape": ({"out": half}, r"out is float16 \(4,\); it takes float32 \(2, 33, 4, 40\)"),
    }


@pytest.mark.parametrize("case", bad_arguments())
@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize("method", ["auto", "reference"])
def test_bad_arguments(stream: Stream, case: str, place: str, method: str) -> None:
    changed, message = bad_arguments()[case]
    given: dict[str, Any] = dict(zip("qkv", qkv(), strict=True))
    if place == "device":
        given = {name: upload(stream, value)[0] for name, value in given.items()}
        given |= {"out": upload(stream, changed["out"])[0]} if "out" in changed else {}
    before = live()
    for _ in range(2):  # the second time as the first, whatever is remembered
        with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
            hipattn.attention(**({"method": method} | changed | given))
        assert live() == before
        assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


def test_what_is_remembered_does_not_let_another_type_through(stream: Stream, tensors: list[DeviceTensor]) -> None:
    hipattn.attention(*tensors, causal=True, scale=1.0, softcap=1.0, window=(1, 1), stream=stream)
    hipattn.attention(*tensors, scale=1, stream=stream)
    for options, message in (
        ({"causal": 1}, "causal is 1"),
        ({"scale": True}, "scale is True"),
        ({"softcap": True}, "softcap is True"),
        ({"window": (True, 1)}, "window is"),
    ):
        with pytest.raises(ArgumentError, match=message):
            hipattn.attention(*tensors, stream=stream, **options)


def test_more_rows_than_positions_can_count_are_refused(stream: Stream) -> None:
    (row,) = upload(stream, np.zeros((1, 1, 1, 8), np.float16))
    many = row.broadcast_to((1, 2**30, 1, 8))
    with pytest.raises(ArgumentError, match=r"k has 1073741824 rows; it takes fewer than 2\^30"):
        hipattn.attention(row, many, many, stream=stream)


def test_a_closed_tensor_is_refused_before_anything_is_allocated(stream: Stream, tensors: list[DeviceTensor]) -> None:
    hipattn.attention(*tensors, stream=stream)
    tensors[1].buffer.close()
    gc.collect()
    before = live()
    with pytest.raises(hipattn.ClosedError, match="k is closed"):
        hipattn.attention(*tensors, stream=stream)
    assert live() == before


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "with others"])
@pytest.mark.parametrize("name", ["q", "k", "v", "out", "bias", "alibi_slopes"])
def test_a_tensor_of_another_device_is_refused(name: str, plain: bool) -> None:
    if hipattn.Device.count() < 2:
        pytest.skip("needs two devices")
    arrays = dict(zip("qkv", qkv(dtype=np.float16), strict=True))
    arrays["out"] = arrays["q"]
    if not plain:
        arrays |= {"bias": np.zeros((33, 33), np.float32), "alibi_slopes": np.zeros(4, np.float32)}
    elif name not in arrays:
        return
    with Stream(hipattn.Device(0)) as here, Stream(hipattn.Device(1)) as there:
        tensors = {n: upload(there if n == name else here, x)[0] for n, x in arrays.items()}
        with bindings.record() as calls, pytest.raises(ArgumentError, match=f"{name} is on device 1; the stream is"):
            hipattn.attention(**tensors, stream=here)
        assert not [call for call, _ in calls if "Malloc" in call or "Launch" in call]


@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_a_closed_tensor_is_refused(stream: Stream, name: str) -> None:
    arrays = dict(zip(("q", "k", "v", "out"), (*qkv(dtype=np.float16), qkv()[0].astype(np.float16)), strict=True))
    tensors = {each: upload(stream, array)[0] for each, array in arrays.items()}
    tensors[name].buffer.close()
    with bindings.record() as calls, pytest.raises(ClosedError, match=f"{name} is closed"):
        hipattn.attention(**tensors, stream=stream)
    assert not [call for call, _ in calls if "Malloc" in call or "Launch" in call]


def test_out_has_neighbours_in_its_last_dimension(stream: Stream, tensors: list[DeviceTensor]) -> None:
    batch, seq_q, heads, _ = tensors[0].shape
    out = upload(stream, np.zeros((batch, seq_q, heads, 2 * tensors[2].shape[3]), np.float16))[0][..., ::2]
    with pytest.raises(ArgumentError, match=r"out has strides .*; its last dimension must be contiguous"):
        hipattn.attention(*tensors, out=out, stream=stream)


@pytest.mark.usefixtures("_fresh_plans")
@pytest.mark.parametrize("unaligned", ["q", "k", "v", "out"])
def test_vectors_are_as_wide_as_the_least_aligned_address(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, unaligned: str
) -> None:
    skip_unless_served(stream, np.float16, 64)
    widths = []

    def load(specialisation: Specialisation, device: Device) -> Kernel:
        widths.append(specialisation.constants["VECTOR"])
        return loader.load(specialisation, device)

    monkeypatch.setattr(flash_fwd, "load", load)
    arrays = qkv(1, 9, 9, 2, 2, 64, dtype=np.float16, seed=7)
    tensors = dict(zip(("q", "k", "v", "out"), upload(stream, *arrays, arrays[0]), strict=True))
    for name in ("", unaligned):
        if name:  # a row later, and an element
            room = upload(stream, np.zeros((1, 10, 2, 64), np.float16))[0]
            moved = DeviceTensor(room.buffer, (1, 9, 2, 64), np.float16, offset=1)
            moved.copy_from(tensors[name].numpy(), stream=stream)
            tensors[name] = moved
        out = hipattn.attention(**tensors, stream=stream).numpy()
        assert_close(out, reference.attention(*arrays), atol=attention_bound(*arrays))
    assert widths == [8, 1]


def test_the_kernels_take_tensors(stream: Stream, tensors: list[DeviceTensor]) -> None:
    q, k, v = tensors
    with pytest.raises(ArgumentError, match="k is ndarray; it takes a DeviceTensor"):
        flash_fwd.launch(q, k.numpy(), v, q, scale=1.0, stream=stream)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="v is ndarray; it takes a DeviceTensor"):
        flash_decode.launch(q, k, v.numpy(), q, scale=1.0, workspace=flash_decode.Workspace(), stream=stream)  # type: ignore[arg-type]


def test_windows_that_hide_nothing_need_no_kernel_of_their_own(stream: Stream, tensors: list[DeviceTensor]) -> None:
    expected = hipattn.attention(*tensors, stream=stream).numpy()
    with bindings.record() as calls:
        out = hipattn.attention(*tensors, window=(32, 10**12), stream=stream)
    assert not [name for name, _ in calls if "ModuleLoad" in name]
    assert same_bits(out.numpy(), expected)


def test_operands_of_the_device_are_used_in_place(stream: Stream, tensors: list[DeviceTensor]) -> None:
    options = {
        "alibi_slopes": np.ones((2, 4), np.float32),
        "sinks": np.ones(4, np.float32),
        "bias": np.ones((4, 1, 33), np.float16),
        "mask": np.ones((33, 33), bool),
    }
    ready = {name: upload(stream, value)[0] for name, value in options.items()}
    mods = {"score_mod": ScoreMod("score * t[h]", t=ready["sinks"]), "mask_mod": MaskMod("q < n + k", n=40)}
    hipattn.attention(*tensors, **ready, **mods, stream=stream)
    with bindings.record() as calls:
        hipattn.attention(*tensors, **ready, **mods, stream=stream)
    assert not [name for name, _ in calls if "Memcpy" in name or "Synchronize" in name]


def test_torch_operands() -> None:
    torch = pytest.importorskip("torch")
    with Stream() as stream:
        skip_unless_served(stream, np.float16, 40)
    q, k, v = qkv(dtype=np.float16)
    given = {"mask": np.arange(33) % 3 > 0, "bias": np.linspace(-1, 1, 33, dtype=np.float16)}
    slopes = np.linspace(0.1, 0.4, 4, dtype=np.float32)
    options = {name: torch.from_numpy(value) for name, value in given.items()}
    out = hipattn.attention(*map(torch.from_numpy, (q, k, v)), **options, alibi_slopes=torch.from_numpy(slopes))
    assert isinstance(out, torch.Tensor)
    plain = given | {"alibi_slopes": slopes}
    assert_close(out.numpy(), reference.attention(q, k, v, **plain), atol=attention_bound(q, k, v, **plain))


# ---- when it fails ----


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_a_failed_launch_is_computed_with_numpy(
    fail: Fail,
    stream: Stream,
    tensors: list[DeviceTensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    layout: str,
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    arrays = qkv(dtype=np.float16)
    given = tensors if layout == "bshd" else [tensor.transpose(0, 2, 1, 3) for tensor in tensors]
    mask, score_mod = FEATURES["mask"](AT)["mask"], FEATURES["score_mod"](AT)["score_mod"]
    options = {"mask": upload(stream, mask)[0], "score_mod": score_mod, "layout": layout, "stream": stream}
    hipattn.attention(*given, **options)
    before = fallback.counts["flash_fwd"]
    for _ in range(2):
        with fail("hipModuleLaunchKernel:1"):
            out, lse = hipattn.attention(*given, return_lse=True, **options)
        result = out.numpy() if layout == "bshd" else out.numpy().swapaxes(1, 2)
        plain = of_reference({"mask": mask, "score_mod": score_mod})
        expected, expected_lse = reference.attention(*arrays, return_lse=True, **plain)
        assert same_bits(np.ascontiguousarray(result), np.ascontiguousarray(expected.astype(np.float16)))
        assert same_bits(lse.numpy(), expected_lse)
    assert fallback.counts["flash_fwd"] == before + 2
    warnings = [record for record in caplog.records if "recomputed on the CPU" in record.message]
    assert len(warnings) <= 1, "one cause is logged once"


def test_a_failed_launch_raises_where_it_shall(fail: Fail, stream: Stream, tensors: list[DeviceTensor]) -> None:
    hipattn.attention(*tensors, stream=stream)
    gc.collect()
    before = live()
    with fail("hipModuleLaunchKernel:1"), pytest.raises(HipError, match="hipModuleLaunchKernel"):
        hipattn.attention(*tensors, stream=stream)
    gc.collect()
    assert live() == before


def test_a_failed_launch_raises_where_numpy_lacks_a_function(
    fail: Fail, stream: Stream, tensors: list[DeviceTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    score_mod = ScoreMod("score * 2")
    hipattn.attention(*tensors, score_mod=score_mod, stream=stream)
    with fail("hipModuleLaunchKernel:1"), pytest.raises(HipError, match="hipModuleLaunchKernel"):
        hipattn.attention(*tensors, score_mod=score_mod, stream=stream)


@pytest.mark.parametrize("mode", ["cpu", "error"])
def test_an_expression_that_does_not_compile_is_shown(
    stream: Stream, tensors: list[DeviceTensor], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """It is the caller's error, with a Python function too, and not recomputed."""
    monkeypatch.setenv("HIPATTN_FALLBACK", mode)
    for name, mod in (
        ("score_mod", ScoreMod("score + wrong[h]", python=lambda score, b, h, q, k: score)),
        ("mask_mod", MaskMod("q < wrong", python=lambda b, h, q, k: q < k)),
    ):
        with pytest.raises(CompileError, match=rf"{name}[:(]1\b(.|\n)*wrong") as raised:
            hipattn.attention(*tensors, stream=stream, **{name: mod})
        assert len(str(raised.value)) < 2000  # without the kernel around it
        assert mod.expression in raised.value.source


def test_an_expression_may_use_infinity(stream: Stream, tensors: list[DeviceTensor]) -> None:
    hidden = hipattn.attention(*tensors, score_mod=ScoreMod("k > q ? -INFINITY : score"), stream=stream)
    masked = hipattn.attention(*tensors, mask_mod=MaskMod("k <= q && -INFINITY < INFINITY"), stream=stream)
    # What the scale is part of differs, and so may the last bit.
    assert_close(hidden.numpy(), masked.numpy(), atol=1e-3)


def test_other_values_do_not_compile_the_kernel_again(stream: Stream, tensors: list[DeviceTensor]) -> None:
    arrays = qkv(dtype=np.float16)
    for n, slope in enumerate((0.5, 0.25)):
        gain = np.full(4, 1 + n, np.float32)
        score_mod = ScoreMod(
            "score * gain[h] + slope * q",
            python=lambda score, b, h, q, k, gain, slope: score * gain[h] + slope * q,
            gain=gain,
            slope=slope,
        )
        with bindings.record() as calls:
            out = hipattn.attention(*tensors, score_mod=score_mod, stream=stream)
        if n:
            assert not [name for name, _ in calls if "ModuleLoad" in name]
        plain = of_reference({"score_mod": score_mod})
        assert_close(out.numpy(), reference.attention(*arrays, **plain), atol=attention_bound(*arrays, **plain))
