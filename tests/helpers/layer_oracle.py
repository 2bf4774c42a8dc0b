"""A transformer's layers in NumPy float64, of any description, for what `ExecutionPlan` computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hipattn import DeviceTensor, LayerSpec, LayerWeights, Stream
from hipattn.attn import reference

__all__ = ["Weights", "layers", "random_weights", "self_attention", "upload_layers"]

Array = NDArray[Any]
Weights = dict[str, Array]


def random_weights(spec: LayerSpec, dtype: Any, seed: int) -> Weights:
    """Return a layer's weights in `dtype`, of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in spec.shapes.items():
        values = rng.standard_normal(shape) / (math.sqrt(shape[-1]) if len(shape) == 2 else 2)
        made[name] = (values + (name.endswith("norm"))).astype(dtype)
    return made


def upload_layers(stream: Stream, weights: list[Weights]) -> list[LayerWeights]:
    """Return them on the device."""
    return [
        LayerWeights(**{name: DeviceTensor.from_numpy(array, stream=stream) for name, array in each.items()})
        for each in weights
    ]


def layers(spec: LayerSpec, weights: list[Weights], x: Array, present: Array | None = None, dtype: Any = None) -> Array:
    """Return what the layers make of [batch, tokens, hidden], in float64; with `dtype`, rounded to it at each stage."""

    def rounded(array: Array) -> Array:
        return array if dtype is None else array.astype(dtype).astype(np.float64)

    x = x.astype(np.float64)
    for each in weights:
        w = {name: array.astype(np.float64) for name, array in each.items()}
        for half, name in ((self_attention, "attention_norm"), (_feed_forward, "ffn_norm")):
            inside = rounded(_norm(spec, x, w, name)) if spec.norm_first else x
            x = rounded(x + half(spec, w, inside, present, rounded))
            x = x if spec.norm_first else rounded(_norm(spec, x, w, name))
    return x


def self_attention(
    spec: LayerSpec, w: Weights, x: Array, present: Array | None = None, rounded: Any = np.copy
) -> Array:
    """Return attention's half, without the residual."""
    batch, tokens, _ = x.shape
    projected = rounded(x @ w["qkv"].T + w.get("qkv_bias", 0))
    heads = projected.reshape(batch, tokens, -1, spec.head_dim)
    q, k, v = np.split(heads, (spec.heads, spec.heads + spec.heads_kv), axis=2)
    if spec.rope is not None:
        q, k = (rounded(_turned(spec, each)) for each in (q, k))
    mask = None if present is None else present[:, None, None, :].astype(bool)
    out = rounded(reference.attention(q, k, v, causal=spec.causal, mask=mask))
    return out.reshape(batch, tokens, -1) @ w["out"].T + w.get("out_bias", 0)


def _feed_forward(spec: LayerSpec, w: Weights, x: Array, present: Array | None, rounded: Any) -> Array:
    inner = rounded(x @ w["up"].T) + w.get("up_bias", 0)
    gate = inner[..., : spec.ffn]
    if spec.activation == "silu":
        active = gate / (1 + np.exp(-gate))
    elif spec.activation == "gelu":
        active = gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) / 2
    else:
        active = gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) / 2
    active = rounded(active * inner[..., spec.ffn :] if spec.gated else active)
    return active @ w["down"].T + w.get("down_bias", 0)


def _norm(spec: LayerSpec, x: Array, w: Weights, name: str) -> Array:
    if spec.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + spec.norm_eps) * w[name] + w.get(f"{name}_bias", 0)


def _turned(spec: LayerSpec, x: Array) -> Array:
    rope = spec.rope
    assert rope is not None
    dim = spec.head_dim if rope.rotary_dim is None else rope.rotary_dim
    places = np.arange(dim).reshape(-1, 2).T if rope.style == "interleaved" else np.arange(dim).reshape(2, -1)
    angles = np.arange(x.shape[1])[:, None, None] * rope.base ** (-2 * np.arange(dim // 2) / dim)
    out, pairs = x.copy(), x[..., places[0]] + 1j * x[..., places[1]]
    turned = pairs * np.exp(1j * angles)
    out[..., places[0]], out[..., places[1]] = turned.real, turned.imag
    return out
