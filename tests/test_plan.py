"""The execution plan against its layers in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import (
    ArgumentError,
    CacheFullError,
    ClosedError,
    Device,
    DeviceTensor,
    ExecutionPlan,
    HipError,
    LayerSpec,
    LayerWeights,
    Rope,
    Stream,
    free_scratch,
)
from hipattn.attn import options as planning
from hipattn.kernels import embedding, flash_decode, scale
from hipattn.runtime import bindings
from tests.helpers.inputs import poisoned
from tests.helpers.layer_oracle import Weights, layers, random_weights, self_attention, upload_layers
from tests.helpers.mismatch import assert_close
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import DTYPES, FLOOR, magnitude

FLOAT32 = DTYPES[0]

# As llama has it, in small; hidden is not heads * head_dim.
LLAMA = LayerSpec(
    hidden=40,
    heads=6,
    heads_kv=2,
    head_dim=16,
    ffn=56,
    norm="rms",
    norm_eps=0.1,  # so large that it shows
    norm_first=True,
    activation="silu",
    gated=True,
    bias=False,
    rope=Rope("interleaved", 100.0),
    causal=True,
)
BERT = replace(
    LLAMA,
    heads_kv=6,
    norm="layer",
    norm_first=False,
    activation="gelu",
    gated=False,
    bias=True,
    rope=None,
    causal=False,
)


def embeddings(batch: int, tokens: int, dtype: Any = FLOAT32, seed: int = 9) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((batch, tokens, LLAMA.hidden)).astype(dtype)


@contextmanager
def planned(
    stream: Stream, spec: LayerSpec, weights: list[Weights], *, method: str = "flash", **sizes: int
) -> Iterator[ExecutionPlan]:
    """A plan whose memory is full of NaN."""
    on_device = upload_layers(stream, weights)
    with ExecutionPlan(spec, on_device, method=method, stream=stream, **sizes) as plan:
        held = [*plan._memory.values(), *((plan.cache._keys, plan.cache._values) if plan.cache is not None else ())]
        for tensor in held:
            tensor.copy_from(np.full(tensor.shape, np.nan, tensor.dtype), stream=stream)
        yield plan
    for each in on_device:
        each.close()


def run(plan: ExecutionPlan, x: NDArray[Any]) -> NDArray[Any]:
    hidden = plan.hidden(*x.shape[:2])
    hidden.copy_from(x, stream=plan.stream)
    return plan.run(hidden).numpy(stream=plan.stream)


def check(found: NDArray[Any], spec: LayerSpec, weights: list[Weights], x: NDArray[Any], **options: Any) -> None:
    """Compare with float64: at most twice the error of the same layers rounded to the dtype at each stage."""
    expected = layers(spec, weights, x, **options)
    low = layers(spec, weights, x, dtype=x.dtype, **options)
    bound = max(2 * np.abs(low - expected).max(), FLOOR[x.dtype] * magnitude(expected))
    assert_close(found.astype(np.float64), expected, atol=bound)


OPTIONS: dict[str, Any] = {
    "dtype": DTYPES,
    "method": ("flash", "staged"),
    "heads_kv": (1, 2, 6),
    "norm": ("rms", "layer"),
    "norm_first": (True, False),
    "activation": ("silu", "gelu", "gelu_tanh"),
    "gated": (True, False),
    "bias": (True, False),
    "rope": (None, Rope("interleaved", 100.0), Rope("half", 500.0), Rope("half", 100.0, rotary_dim=10)),
    "causal": (True, False),
}


@pytest.mark.parametrize(
    "row", pairwise(OPTIONS), ids=lambda row: "-".join(str(getattr(x, "style", x)) for x in row.values())
)
def test_layers_of_any_description(stream: Stream, row: dict[str, Any]) -> None:
    options = dict(row)
    dtype, method = options.pop("dtype"), options.pop("method")
    spec = replace(LLAMA, **options)
    weights = [random_weights(spec, dtype, seed) for seed in range(2)]
    x = embeddings(2, 7, dtype)
    with planned(stream, spec, weights, method=method, batch=2, tokens=7) as plan:
        check(run(plan, x), spec, weights, x)


@pytest.mark.parametrize("method", ["flash", "staged"])
@pytest.mark.parametrize("cuts", [(1, 2, 3), (5,), (2, 7, 8)])
def test_calls_with_a_cache_are_as_one(stream: Stream, method: str, cuts: tuple[int, ...]) -> None:
    weights = [random_weights(LLAMA, FLOAT32, seed) for seed in range(2)]
    x = embeddings(3, 9)
    with planned(stream, LLAMA, weights, method=method, batch=3, tokens=9, capacity=11) as plan:
        for _ in range(2):  # and again after a reset
            parts = [run(plan, part) for part in np.split(x, cuts, axis=1)]
            assert plan.length == 9
            check(np.concatenate(parts, axis=1), LLAMA, weights, x)
            plan.truncate(4)
            again = run(plan, x[:, 4:])
            check(np.concatenate([np.concatenate(parts, axis=1)[:, :4], again], axis=1), LLAMA, weights, x)
            with pytest.raises(ArgumentError, match="length is 10; the cache holds 9 tokens"):
                plan.truncate(10)
            plan.reset()
            assert plan.length == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequences_of_different_lengths_end_together(stream: Stream, dtype: np.dtype[Any]) -> None:
    weights = [random_weights(LLAMA, dtype, seed) for seed in range(2)]
    lengths, x = (4, 9, 1), embeddings(3, 9, dtype)
    present = np.ones((3, 12), np.uint8)
    for row, length in zip(present, lengths, strict=True):
        row[: 9 - length] = 0
    with planned(stream, LLAMA, weights, batch=3, tokens=8, capacity=12) as plan:
        plan.reset(DeviceTensor.from_numpy(present, stream=stream))
        found = np.concatenate([run(plan, x[:, :8]), run(plan, x[:, 8:])], axis=1)
    assert np.isfinite(found).all()
    for b, length in enumerate(lengths):  # each as it is alone, where its positions begin at 0
        check(found[b : b + 1, 9 - length :], LLAMA, weights, x[b : b + 1, 9 - length :])


@pytest.mark.parametrize("method", ["flash", "auto"])
def test_missing_tokens_of_an_encoder(stream: Stream, method: str) -> None:
    weights = [random_weights(BERT, FLOAT32, seed) for seed in range(2)]
    x, present = embeddings(2, 8), np.ones((2, 8), np.uint8)
    present[0, 3:] = 0
    with planned(stream, BERT, weights, method=method, batch=4, tokens=10) as plan:
        plan.reset(DeviceTensor.from_numpy(present, stream=stream))
        found = run(plan, x)
        check(found[:1, :3], BERT, weights, x[:1, :3])
        check(found[1:], BERT, weights, x[1:])
        with bindings.record() as calls:
            for shape in ((1, 8), (3, 8), (2, 7), (2, 9)):
                with pytest.raises(
                    ArgumentError, match=r"hidden has \d sequences of \d tokens; present is of \(2, 8\)"
                ):
                    plan.run(plan.hidden(*shape))
        assert not calls
        plan.reset()
        check(run(plan, x), BERT, weights, x)


def steps(plan: ExecutionPlan, x: NDArray[Any]) -> NDArray[Any]:
    """Take tokens through the plan one by one."""
    out = [x[:, :0]]
    for at in range(x.shape[1]):
        hidden = plan.hidden(x.shape[0], 1)
        hidden.copy_from(x[:, at : at + 1], stream=plan.stream)
        plan.step(hidden, before=lambda: None, after=lambda: None)
        out.append(hidden.numpy(stream=plan.stream))
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("method", ["flash", "staged"])
@pytest.mark.parametrize("heads_kv", [1, 2, 6])
def test_steps_are_replayed(stream: Stream, method: str, heads_kv: int) -> None:
    spec = replace(LLAMA, heads_kv=heads_kv)
    weights = [random_weights(spec, FLOAT32, seed) for seed in range(2)]
    x = embeddings(2, 20)
    with planned(stream, spec, weights, method=method, batch=2, tokens=7, capacity=20) as plan:
        with bindings.record() as calls:
            found = np.concatenate([run(plan, x[:, :7]), steps(plan, x[:, 7:])], axis=1)
        check(found, spec, weights, x)
        names = [name for name, _ in calls]
        assert names.count("hipGraphLaunch") == (12 if method == "flash" else 0)  # all but the first
        assert names.count("hipGraphInstantiateWithFlags") == names.count("hipGraphLaunch") // 12
        assert [plan.cache.length(layer) for layer in range(2)] == [20, 20]
        with pytest.raises(CacheFullError, match="the cache holds 20 of 20 tokens; 1 more do not fit"):
            steps(plan, x[:, :1])
        plan.truncate(9)  # the graph goes on from anywhere
        again = np.concatenate([steps(plan, x[:, 9:11]), run(plan, x[:, 11:15]), steps(plan, x[:, 15:])], axis=1)
        check(np.concatenate([found[:, :9], again], axis=1), spec, weights, x)
        plan.reset()
        check(steps(plan, x[:, :5]), spec, weights, x[:, :5])


def test_steps_whose_keys_are_split_in_many_streams(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's own memory holds the parts: what else the thread decodes, or lets go of, is all one to its graph."""
    monkeypatch.setattr(flash_decode, "best_splits", lambda *_: 2)
    weights, x, plans = [random_weights(LLAMA, FLOAT32, 0)], embeddings(2, 8), 6
    planning.plan_decode.cache_clear()
    flash_decode._plan.cache_clear()
    with ExitStack() as stack, bindings.record() as calls:
        streams = [stack.enter_context(Stream(device)) for _ in range(plans)]
        made = [stack.enter_context(planned(each, LLAMA, weights, batch=2, tokens=3, capacity=600)) for each in streams]
        results = [[run(plan, x[:, :3])] for plan in made]
        allocations = [name for name, _ in calls].count("hipMallocAsync")
        for at in range(3, 8):
            for plan, parts in zip(made, results, strict=True):
                parts.append(steps(plan, x[:, at : at + 1]))
            free_scratch()
        names = [name for name, _ in calls]
        assert names.count("hipGraphLaunch") == plans * 4  # all but the first of each
        assert names.count("hipMallocAsync") == allocations
        for parts in results:
            check(np.concatenate(parts, axis=1), LLAMA, weights, x)
    planning.plan_decode.cache_clear()
    flash_decode._plan.cache_clear()


def test_a_replayed_step_launches_one_graph(stream: Stream) -> None:
    weights, x = [random_weights(LLAMA, FLOAT32, 0)], embeddings(1, 6)
    with planned(stream, LLAMA, weights, tokens=4, capacity=8) as plan:
        steps(plan, x[:, :4])
        hidden = plan.hidden(1, 1)
        with bindings.record() as calls:
            plan.step(hidden, before=lambda: None, after=lambda: None)
        names = [name for name, _ in calls]
        assert [name for name in names if "Graph" in name or "Launch" in name] == ["hipGraphLaunch"]
        assert not {name for name in names if "Memcpy" in name or "Malloc" in name or "Synchron" in name}
        with pytest.raises(ArgumentError, match="hidden has 2 tokens; a step takes one"):
            plan.step(plan.hidden(1, 2), before=lambda: None, after=lambda: None)


def test_steps_of_sequences_of_different_lengths(stream: Stream) -> None:
    weights = [random_weights(LLAMA, FLOAT32, seed) for seed in range(2)]
    x, present = embeddings(2, 12), np.ones((2, 12), np.uint8)
    with planned(stream, LLAMA, weights, batch=2, tokens=8, capacity=12) as plan:
        for missing in (5, 2):
            present[0, :missing] = 0
            plan.reset(DeviceTensor.from_numpy(present, stream=stream))
            found = np.concatenate([run(plan, x[:, :8]), steps(plan, x[:, 8:])], axis=1)
            for b, first in enumerate((missing, 0)):
                check(found[b : b + 1, first:], LLAMA, weights, x[b : b + 1, first:])
            present[:] = 1


def test_a_step_that_fails_leaves_the_cache_as_it_was(stream: Stream, fail: Any) -> None:
    weights, x = [random_weights(LLAMA, FLOAT32, seed) for seed in range(3)], embeddings(1, 5)
    for before in (1, 2, 3):  # the first step, the capture, a replay
        calls = ("hipModuleLaunchKernel:9", "hipblasGemmStridedBatchedEx:6", "hipMemsetD32Async:1")
        if before == 2:
            calls += ("hipStreamBeginCapture:1", "hipGraphInstantiateWithFlags:1", "hipGraphLaunch:1")
        for call in calls if before < 3 else ("hipMemsetD32Async:1", "hipGraphLaunch:1"):
            with planned(stream, LLAMA, weights, capacity=8) as plan:
                parts = [run(plan, x[:, :1]), steps(plan, x[:, 1:before])]
                hidden = plan.hidden(1, 1)
                hidden.copy_from(x[:, before : before + 1], stream=stream)
                with fail(call), pytest.raises(HipError, match=call.partition(":")[0]):
                    plan.step(hidden, before=lambda: None, after=lambda: None)
                assert [plan.cache.length(layer) for layer in range(3)] == [before] * 3
                check(np.concatenate([*parts, steps(plan, x[:, before:])], axis=1), LLAMA, weights, x)


def test_what_goes_with_a_step(stream: Stream) -> None:
    """It is captured with the layers, under its key; an error of it undoes the step."""
    weights, x = [random_weights(LLAMA, FLOAT32, 0)], embeddings(1, 1)
    with planned(stream, LLAMA, weights, capacity=20) as plan:
        hidden = plan.hidden(1, 1)
        table = DeviceTensor.from_numpy(np.concatenate([x[0], 2 * x[0]]), stream=stream)
        ids = [DeviceTensor.from_numpy(np.array([[which]], np.int32), stream=stream) for which in (0, 1)]

        def found(which: int) -> NDArray[Any]:
            plan.reset()
            plan.step(
                hidden,
                before=lambda: embedding.launch(table, ids[which], hidden, stream=stream),
                after=lambda: scale.launch(hidden, 2.0, stream=stream),
                key=ids[which].pointer,
            )
            return hidden.numpy() / 2

        for which in (0, 1, 0, 1, 0, 1):
            check(found(which), LLAMA, weights, x * (which + 1))

        def refuse() -> None:
            raise KeyError("after")

        for _ in range(3):
            with pytest.raises(KeyError):
                plan.step(hidden, before=lambda: None, after=refuse, key="other")
            assert plan.length == 1


@pytest.mark.parametrize("accumulate", [False, True])
def test_self_attention_alone(stream: Stream, accumulate: bool) -> None:
    weights, x = [random_weights(LLAMA, FLOAT32, seed) for seed in range(3)], embeddings(2, 5)
    expected = self_attention(LLAMA, {name: array.astype(np.float64) for name, array in weights[2].items()}, x)
    with planned(stream, LLAMA, weights, batch=2, tokens=5, capacity=5) as plan:
        hidden = DeviceTensor.from_numpy(x, stream=stream)
        out = DeviceTensor.from_numpy(x, stream=stream) if accumulate else poisoned(stream, x.shape, FLOAT32)
        assert plan.self_attention(hidden, 2, out=out, accumulate=accumulate) is out
        assert_close(out.numpy(), expected + x * accumulate, atol=1e-5 * magnitude(expected))
        assert [plan.cache.length(layer) for layer in range(3)] == [0, 0, 5]


def test_nothing_is_copied_or_allocated_on_the_way(stream: Stream) -> None:
    weights = [random_weights(LLAMA, FLOAT32, seed) for seed in range(2)]
    with planned(stream, LLAMA, weights, batch=2, tokens=4, capacity=64) as plan:
        run(plan, embeddings(2, 4))
        hidden = plan.hidden(2, 1)
        hidden.copy_from(embeddings(2, 1), stream=stream)
        with bindings.record() as calls:
            for _ in range(20):
                plan.run(hidden)
        names = {name for name, _ in calls}
        assert not {
            name for name in names if "Memcpy" in name or "Malloc" in name or "Free" in name or "Synchron" in name
        }
        products = [name for name, _ in calls].count("hipblasGemmStridedBatchedEx")
        assert products == 20 * 2 * 4  # QKV, output, up, down


def test_a_full_cache_refuses_and_stays(stream: Stream) -> None:
    weights, x = [random_weights(LLAMA, FLOAT32, 0)], embeddings(1, 5)
    with planned(stream, LLAMA, weights, tokens=4, capacity=5) as plan:
        first = run(plan, x[:, :4])
        with pytest.raises(CacheFullError, match="the cache holds 4 of 5 tokens; 2 more do not fit"):
            run(plan, x[:, :2])
        assert plan.length == 4
        check(np.concatenate([first, run(plan, x[:, 4:])], axis=1), LLAMA, weights, x)


def test_a_failed_launch_leaves_the_cache_as_it_was(stream: Stream, fail: Any) -> None:
    weights, x = [random_weights(LLAMA, FLOAT32, seed) for seed in range(3)], embeddings(1, 4)
    with planned(stream, LLAMA, weights, tokens=3, capacity=8) as plan:
        first = run(plan, x[:, :3])
        for call in ("hipModuleLaunchKernel:1", "hipModuleLaunchKernel:9", "hipblasGemmStridedBatchedEx:6"):
            hidden = plan.hidden(1, 1)
            hidden.copy_from(x[:, 3:], stream=stream)
            with fail(call), pytest.raises(HipError):
                plan.run(hidden)
            assert [plan.cache.length(layer) for layer in range(3)] == [3, 3, 3]
        check(np.concatenate([first, run(plan, x[:, 3:])], axis=1), LLAMA, weights, x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden is 0; it takes an integer of 1 or more"),
        ({"heads_kv": 4}, "heads is 6, which is no multiple of heads_kv, 4"),
        ({"norm": "batch"}, "norm is 'batch'; accepted: rms, layer"),
        ({"activation": "relu"}, "activation is 'relu'; accepted: silu, gelu, gelu_tanh"),
        ({"norm_eps": -1.0}, "norm_eps is -1.0; it takes 0 or more"),
        ({"bias": 1}, "bias is 1; it takes True or False"),
        ({"rope": "half"}, "rope is str; it takes a Rope"),
        ({"rope": Rope("half", rotary_dim=7)}, "rotary_dim is 7; it takes an even number of at most 16"),
        ({"rope": Rope("half", rotary_dim=18)}, "rotary_dim is 18; it takes an even number of at most 16"),
        ({"head_dim": 15}, "head_dim is 15; it takes an even number of at most 512"),
        ({"rope": Rope("half", factors=[1.0] * 7)}, "rope has 7 factors; it takes 8, one a pair"),
    ],
)
def test_bad_descriptions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(LLAMA, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("neox",), "style is 'neox'"),
        (("half", 0.0), "base is 0"),
        (("half", 1.0, None, (1.0, 0.0)), r"factors is \(1.0, 0.0\); it takes numbers above 0"),
        (("half", 1.0, None, ("2",)), "factors is '2'; it takes a finite number"),
    ],
)
def test_bad_rope(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Rope(*arguments)


def test_bad_weights_are_named_by_their_stage(stream: Stream) -> None:
    good = random_weights(LLAMA, FLOAT32, 0)

    def refused(message: str, **changes: NDArray[Any]) -> None:
        with pytest.raises(ArgumentError, match=message):
            ExecutionPlan(LLAMA, upload_layers(stream, [good, good | changes]), stream=stream)

    wide = np.zeros((160, 41), np.float32)
    refused(r"layer 1, QKV projection: qkv is float32 \(160, 41\) .*it takes float32 \(160, 40\), contiguous", qkv=wide)
    refused("layer 1, output projection: out is float16", out=good["out"].astype(np.float16))
    refused(r"layer 1, feed-forward network: down is float32 \(56, 40\)", down=good["down"].T.copy())
    refused(r"layer 1, norm of attention: attention_norm is float32 \(1,\)", attention_norm=np.ones(1, np.float32))
    refused("layer 1, QKV projection: qkv_bias is given; the layer's", qkv_bias=np.zeros(160, np.float32))
    with pytest.raises(ArgumentError, match="layer 0, norm of attention: attention_norm_bias is None; it takes a Dev"):
        ExecutionPlan(replace(LLAMA, norm="layer"), upload_layers(stream, [good]), stream=stream)


def test_bad_arguments(stream: Stream) -> None:
    weights = upload_layers(stream, [random_weights(LLAMA, FLOAT32, 0)])

    def refused(message: str, spec: LayerSpec = LLAMA, layers: list[LayerWeights] = weights, **options: Any) -> None:
        with pytest.raises(ArgumentError, match=message):
            ExecutionPlan(spec, layers, **{"stream": stream} | options)

    refused("layers is empty", layers=[])
    refused("tokens is 0; it takes an integer of 1 or more", tokens=0)
    refused("method is 'fast'; accepted: auto, flash, staged", method="fast")
    refused("capacity is given; the layers are not causal", spec=replace(LLAMA, causal=False), capacity=8)
    refused("stream is int; it takes a Stream", stream=3)
    with ExecutionPlan(LLAMA, weights, batch=2, tokens=4, capacity=8, method="staged", stream=stream) as plan:
        for shape, message in (
            ((1, 2, 40), r"hidden has 1 sequences of 2 tokens; the plan takes 2 of 1 to 4"),
            ((2, 5, 40), r"hidden has 2 sequences of 5 tokens; the plan takes 2 of 1 to 4"),
            ((2, 2, 41), r"hidden is float32 \(2, 2, 41\) .*it takes float32 \[batch, tokens, 40\], contiguous"),
        ):
            with pytest.raises(ArgumentError, match=message):
                plan.run(DeviceTensor.empty(shape, stream=stream))
        hidden = plan.hidden(2, 3)
        with pytest.raises(ArgumentError, match=r"layer is 1; the plan has layers 0 to 0"):
            plan.self_attention(hidden, 1, out=hidden)
        with pytest.raises(
            ArgumentError, match=r"output projection: out has shape \(2, 1, 40\); hidden has \(2, 3, 40\)"
        ):
            plan.self_attention(hidden, 0, out=plan.hidden(2, 1))
        present = DeviceTensor.from_numpy(np.ones((2, 8), np.uint8), stream=stream)
        with pytest.raises(ArgumentError, match="present is given; the plan's method is 'staged'"):
            plan.reset(present)
        with pytest.raises(ArgumentError, match=r"present is uint8 \(2, 7\); it takes uint8 \(2, 8\), contiguous"):
            plan.reset(present[:, :7])
        assert plan.length == 0


def test_no_room_for_a_cache(stream: Stream, fail: Any) -> None:
    weights = upload_layers(stream, [random_weights(LLAMA, FLOAT32, 0)])
    call = "hipMallocAsync" if stream.device.memory_pools else "hipMalloc"
    for nth in range(1, 8):  # five pieces, keys, values; the test's end sees that nothing stays
        with fail(f"{call}:{nth}"), pytest.raises(HipError):
            ExecutionPlan(LLAMA, weights, capacity=8, stream=stream)


def test_a_head_that_the_fused_kernel_does_not_take(stream: Stream) -> None:
    spec = replace(LLAMA, heads=1, heads_kv=1, head_dim=2500, rope=None)
    weights, x = [random_weights(spec, FLOAT32, 0)], embeddings(1, 4)
    on_device = upload_layers(stream, weights)
    with pytest.raises(ArgumentError, match=r"method is 'flash': head_dim 2500.* does not fit .*; 'staged' takes it"):
        ExecutionPlan(spec, on_device, method="flash", stream=stream)
    with planned(stream, spec, weights, method="auto", tokens=4) as plan:
        present = DeviceTensor.from_numpy(np.ones((1, 4), np.uint8), stream=stream)
        with pytest.raises(ArgumentError, match="present is given, which only method 'flash' takes: head_dim 2500"):
            plan.reset(present)
        check(run(plan, x), spec, weights, x)


def test_layers_that_are_none(stream: Stream) -> None:
    arrays = {name: np.ones(shape, np.float32) for name, shape in LLAMA.shapes.items()}
    with pytest.raises(ArgumentError, match="layer 0, QKV projection: qkv is ndarray; it takes a DeviceTensor"):
        ExecutionPlan(LLAMA, [LayerWeights(**arrays)], stream=stream)
    with pytest.raises(ArgumentError, match="layers is a LayerWeights; it takes a list"):
        ExecutionPlan(LLAMA, LayerWeights(**arrays), stream=stream)


def test_a_closed_plan_says_so(stream: Stream) -> None:
    with planned(stream, LLAMA, [random_weights(LLAMA, FLOAT32, 0)]) as plan:
        plan.close()
        with pytest.raises(ClosedError, match="the plan is closed"):
            plan.hidden(1, 1)
