"""Expressions of the user's: what is accepted, what is rendered, where the values are."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from hipattn import ArgumentError, Device, DeviceTensor, MaskMod, ScoreMod, Stream
from hipattn.kernels.block_mask import BlockMaskParams
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.tolerance import BFLOAT16


def test_a_score_mod_is_rendered_as_a_device_function() -> None:
    values = {"bias": np.zeros(4, np.float16), "slope": 0.5, "table": np.zeros(3, np.int32), "left": 7, "gain": 2.0}
    mod = ScoreMod("score + bias[h] * slope\n+ table[b] * left * gain", **values)
    assert mod.render("user_score_mod", 1, 2) == (
        "#ifndef INFINITY\n#define INFINITY __builtin_bit_cast(float, 0x7f800000)\n#endif\n"
        "__device__ inline float user_score_mod(float score, int b, int h, int q, int k, const FlashFwdParams& p) {\n"
        "    const _Float16* bias = static_cast<const _Float16*>(p.user_tensors[1]);\n"
        "    const float slope = p.user_floats[2];\n"
        "    const int* table = static_cast<const int*>(p.user_tensors[2]);\n"
        "    const int left = p.user_ints[2];\n"
        "    const float gain = p.user_floats[3];\n"
        "    return (\n"
        '#line 1 "score_mod"\n'
        "score + bias[h] * slope\n+ table[b] * left * gain\n"
        "    );\n"
        "}\n"
    )
    assert [tensor.dtype for tensor in mod.tensors] == [np.float16, np.int32]
    assert (mod.floats, mod.ints) == ((0.5, 2.0), (7,))


def test_a_mask_mod_yields_a_bool_and_has_no_score() -> None:
    text = MaskMod("q / 64 == k / 64").render("user_mask_mod", 8, 8, params="Other")
    assert "\n__device__ inline bool user_mask_mod(int b, int h, int q, int k, const Other& p) {\n" in text
    assert '#line 1 "mask_mod"\nq / 64 == k / 64\n' in text


def test_the_key_is_what_the_kernel_depends_on() -> None:
    def key(expression: str = "score * x", **values: Any) -> Any:
        return ScoreMod(expression, **values).key

    tensor = np.zeros(3, np.float32)
    assert key(x=1.0) == key(x=2.0)
    assert key(x=tensor) == key(x=tensor + 1)
    different = [
        key(x=1.0),
        key(x=1),
        key(x=tensor),
        key(x=tensor.astype(np.float16)),
        key(x=tensor.astype(BFLOAT16)),
        key("score / x", x=1.0),
        key(y=1.0),
        MaskMod("score * x", x=1.0).key,
    ]
    assert len(set(different)) == len(different)


def test_values_are_written_where_they_are_read(stream: Stream) -> None:
    tensors = [DeviceTensor.from_numpy(np.zeros(3, kind), stream=stream) for kind in (np.float32, np.int32)]
    mod = ScoreMod("score", a=tensors[0], x=0.5, b1=tensors[1], n=-3, y=-np.inf, m=2**31 - 1).on(stream)
    arguments = BlockMaskParams()
    mod.fill(arguments, 2, 5)
    assert list(arguments.user_tensors) == [None, None, tensors[0].pointer, tensors[1].pointer, *[None] * 4]
    assert list(arguments.user_floats) == [0, 0, 0, 0, 0, 0.5, -np.inf, 0]
    assert list(arguments.user_ints) == [0, 0, 0, 0, 0, -3, 2**31 - 1, 0]


def test_arrays_of_the_host_are_copied_at_once_and_uploaded_once_per_device(device: Device) -> None:
    before, _ = live()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    mod = ScoreMod("score + t[h]", t=array)
    array[:] = -1
    assert live()[0] == before
    with Stream(device) as stream:
        ready = mod.on(stream)
        with bindings.record() as calls:
            assert mod.on(stream) is ready
            assert ready.on(stream) is ready
        assert not calls
        assert ready.tensors[0].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert mod.render("f", 0, 0) == ready.render("f", 0, 0)
    del mod, ready
    gc.collect()
    assert live()[0] == before


def test_tensors_of_the_device_are_used_in_place(stream: Stream) -> None:
    tensor = DeviceTensor.from_numpy(np.zeros(3, np.float32), stream=stream)
    mod = ScoreMod("score + t[h]", t=tensor)
    assert mod.on(stream) is mod
    assert mod.tensors[0] is tensor


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    mod = ScoreMod("score + t[h]", t=torch.arange(3, dtype=torch.bfloat16))
    assert mod.tensors[0].dtype == BFLOAT16
    with Stream() as stream:
        assert mod.on(stream).tensors[0].numpy().tolist() == [0, 1, 2]


def test_a_python_function_is_given_the_values_by_name(stream: Stream) -> None:
    tensor = DeviceTensor.from_numpy(np.arange(6, dtype=np.int32).reshape(2, 3), stream=stream)
    mod = ScoreMod("score + t[h] * n", python=lambda s, b, h, q, k, t, n: s + t[h] * n, t=tensor, n=2)
    assert mod.on_host()(0.5, 0, 4, 0, 0) == 8.5
    with pytest.raises(ArgumentError, match=r"mask_mod has no Python function, .* 'q < k'; .*MaskMod\(..., python="):
        MaskMod("q < k").on_host()


@pytest.mark.parametrize("expression", ["", "  \n", None, 3, b"score"])
def test_what_is_no_text_is_refused(expression: Any) -> None:
    with pytest.raises(ArgumentError, match=r"score_mod is .*; it takes an expression of HIP as text"):
        ScoreMod(expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("score; q", "an expression has no ;"),
        ("#define x\nscore", "an expression has no #"),
        ("[&] { return score }()", "an expression has no {"),
        ("score }", "an expression has no }"),
        ("score // why", "an expression has no //"),
        ("score /* why", "an expression has no /*"),
        ("score + 'a'", "an expression has no '"),
        ("score \\", "an expression has no \\"),
        ("(score", "its parentheses do not match"),
        ("score)", "its parentheses do not match"),
        ("score) + (q", "its parentheses do not match"),
    ],
)
def test_what_would_end_the_function_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        ScoreMod(expression)
    assert repr(expression) in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["score", "b", "h", "q", "k", "p"])
def test_names_that_have_a_meaning_are_refused(name: str) -> None:
    for kind in (ScoreMod, MaskMod):
        with pytest.raises(ArgumentError, match=f"has a value named '{name}'; score, b, h, q, k, p have a meaning"):
            kind("q", **{name: 1.0})


@pytest.mark.parametrize("name", ["float", "while", "xor", "2x", "a-b", "größe", ""])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"a value named '{name}'; a name is an identifier of C"):
        ScoreMod("score", **{name: 1.0})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "x is True"),
        (np.True_, "x is np.True_"),
        (2**31, "x is 2147483648; an int has 32 bits"),
        (float("nan"), "x is nan"),
        (1e39, r"x is 1e\+39; it takes a number that float32 can hold"),
        (None, "x is None"),
        ("text", "x is str"),
        (np.zeros(3), "x is float64; accepted: float32, float16, bfloat16, int32"),
        (np.zeros(3, bool), "x is bool"),
    ],
)
def test_other_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"score_mod's {message}"):
        ScoreMod("score", x=value)


def test_strided_tensors_are_refused_on_the_device_and_copied_from_the_host(stream: Stream) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    with pytest.raises(ArgumentError, match=r"score_mod's x has shape .* it takes a contiguous tensor"):
        ScoreMod("score", x=DeviceTensor.from_numpy(array, stream=stream)[:, ::2])
    assert ScoreMod("score", x=array[:, ::2]).on(stream).tensors[0].numpy().tolist() == array[:, ::2].tolist()


def test_at_most_eight_tensors_and_eight_numbers() -> None:
    tensor = np.zeros(1, np.float32)
    numbers = {f"n{i}": (i, float(i))[i % 2] for i in range(8)}
    ScoreMod("score", **numbers, **{f"t{i}": tensor for i in range(8)})
    with pytest.raises(ArgumentError, match="mask_mod has 9 tensors; it takes at most 8"):
        MaskMod("true", **{f"t{i}": tensor for i in range(9)})
    with pytest.raises(ArgumentError, match="score_mod has 9 numbers; it takes at most 8"):
        ScoreMod("score", **numbers, x=1.0)


def test_numpy_s_numbers_are_numbers() -> None:
    mod = ScoreMod("score", a=np.float32(0.5), c=np.int64(3), d=np.float16(2))
    assert (mod.floats, mod.ints) == ((0.5, 2.0), (3,))


def test_integers_of_a_list_stay_integers() -> None:
    mod = ScoreMod("score", ids=[1, 2**24 + 1], gains=(1, 2.0), at=[np.int64(3)])
    assert [tensor.dtype for tensor in mod.tensors] == [np.int32, np.float32, np.int32]
    assert mod.tensors[0].tolist() == [1, 2**24 + 1]
    with pytest.raises(ArgumentError, match="score_mod's x has numbers from 0 to 2147483648; an int has 32 bits"):
        ScoreMod("score", x=[0, 2**31])


@pytest.mark.parametrize(
    ("mod", "message"),
    [
        (MaskMod("q < k", python=lambda _b, _h, q, k: q - k), r"mask_mod's .* returns int64 \(2, 3\); it takes bools"),
        (
            MaskMod("q < k", python=lambda b, h, q, k: np.ones(2, bool)),
            r"returns bool \(2,\); .* broadcast to \(2, 3\)",
        ),
        (ScoreMod("score", python=lambda *_: None), r"score_mod's .* returns object \(\); .* numbers"),
    ],
)
def test_what_a_python_function_returns_is_checked(mod: Any, message: str) -> None:
    q, k = np.arange(2)[:, None], np.arange(3)[None]
    score = (np.zeros((2, 3)),) if isinstance(mod, ScoreMod) else ()
    with pytest.raises(ArgumentError, match=message):
        mod.on_host()(*score, 0, 0, q, k)


def test_what_a_python_function_returns_is_broadcast() -> None:
    q, k = np.arange(2)[:, None], np.arange(3)[None]
    assert MaskMod("h == 0", python=lambda _b, h, _q, _k: h == 0).on_host()(0, 0, q, k).tolist() == [[True] * 3] * 2
    assert ScoreMod("0.0f", python=lambda *_: 0.0).on_host()(np.ones((2, 3)), 0, 0, q, k).shape == (2, 3)


def test_what_it_says_of_itself() -> None:
    mod = ScoreMod("score * s + t[h]", s=2.0, t=np.zeros((2, 3), np.float16))
    assert repr(mod) == "ScoreMod('score * s + t[h]', s=2.0, t=<float16 (2, 3)>)"


@pytest.mark.parametrize("expression", ["0 <= q - k < 3", "(a < q < b) && k == 0", "h == 0 || 1 < k <= q"])
def test_chained_comparisons_are_refused(expression: str) -> None:
    with pytest.raises(ArgumentError, match=r"mask_mod is .*write a < b && b < c"):
        MaskMod(expression, a=1, b=2) if "a <" in expression else MaskMod(expression)


@pytest.mark.parametrize(
    "expression",
    ["q < 3 && k < 4", "(q < 3) == (k < 3)", "static_cast<int>(k) < q", "q << 1 < k", "q < 3 ? k < 2 : k > 5"],
)
def test_comparisons_side_by_side_are_not(expression: str) -> None:
    MaskMod(expression)
