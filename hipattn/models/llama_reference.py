"""A llama model in NumPy, written from the architecture: what a device's plan is compared with.

x = embedding[token]
each layer:
    a = rms(x) * attn_norm
    q, k, v = Wq a, Wk a, Wv a, by heads; q and k turned by RoPE; k and v join the cache
    x += Wo attention(q, keys so far, values so far)
    b = rms(x) * ffn_norm
    x += Wdown (silu(Wgate b) * Wup b)
logits = Woutput (rms(x) * output_norm), where Woutput is the embedding if the model has no other
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from hipattn.attn import reference
from hipattn.models.hyperparameters import Hyperparameters
from hipattn.models.weights import Weight

Array = NDArray[Any]


class LlamaReference:
    """One sequence through a llama model; the keys and values of what it has seen stay in the cache.

    `dtype` is that of the weights and of all arithmetic: float64, or float32 for half the memory and time.
    """

    def __init__(self, sizes: Hyperparameters, weights: Iterable[Weight], dtype: DTypeLike = np.float64) -> None:
        self.sizes = sizes
        self.dtype = np.dtype(dtype)
        self.weights = {weight.name: weight.array.astype(self.dtype) for weight in weights}
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        empty = np.zeros((1, 0, self.sizes.kv_heads, self.sizes.head_dim), self.dtype)
        self.keys = [empty] * self.sizes.layers
        self.values = [empty] * self.sizes.layers

    @property
    def length(self) -> int:
        """How many tokens it has seen."""
        return int(self.keys[0].shape[1])

    def hidden(self, tokens: ArrayLike) -> Array:
        """Append tokens; return what the output projection gets for each, [tokens, hidden]."""
        ids = np.asarray(tokens, np.int64)
        positions = self.length + np.arange(len(ids))
        x: Array = self.weights["token_embd.weight"][ids]
        for layer in range(self.sizes.layers):
            x = x + self._attention(layer, x, positions)
            x = x + self._feed_forward(layer, x)
        return self._normed(x, "output_norm")

    def forward(self, tokens: ArrayLike) -> Array:
        """Append tokens; return the logits after each, [tokens, vocabulary]."""
        return self._logits(self.hidden(tokens))

    def generate(self, prompt: Sequence[int], count: int, stops: Collection[int] = ()) -> list[int]:
        """Append a prompt, then the likeliest token `count` times, or until one of `stops`, which is not returned."""
        answer: list[int] = []
        tokens = list(prompt)
        while len(answer) < count:
            token = int(self._logits(self.hidden(tokens)[-1]).argmax())
            if token in stops:
                break
            answer.append(token)
            tokens = [token]
        return answer

    def _attention(self, layer: int, x: Array, positions: NDArray[np.int64]) -> Array:
        s = self.sizes
        normed = self._normed(x, f"blk.{layer}.attn_norm")

        def heads(name: str, count: int) -> Array:
            product: Array = normed @ self.weights[f"blk.{layer}.{name}.weight"].T
            return product.reshape(1, len(x), count, s.head_dim)

        q = self._turned(heads("attn_q", s.heads), positions)
        k = self._turned(heads("attn_k", s.kv_heads), positions)
        self.keys[layer] = np.concatenate((self.keys[layer], k), axis=1)
        self.values[layer] = np.concatenate((self.values[layer], heads("attn_v", s.kv_heads)), axis=1)
        out = reference.attention(q, self.keys[layer], self.values[layer], causal=True, dtype=self.dtype)
        mixed: Array = out.reshape(len(x), -1) @ self.weights[f"blk.{layer}.attn_output.weight"].T
        return mixed

    def _feed_forward(self, layer: int, x: Array) -> Array:
        normed = self._normed(x, f"blk.{layer}.ffn_norm")
        gate = normed @ self.weights[f"blk.{layer}.ffn_gate.weight"].T
        up = normed @ self.weights[f"blk.{layer}.ffn_up.weight"].T
        with np.errstate(over="ignore"):  # exp of a large number: silu is 0 then
            silu = gate / (1 + np.exp(-gate))
        down: Array = (silu * up) @ self.weights[f"blk.{layer}.ffn_down.weight"].T
        return down

    def _logits(self, hidden: Array) -> Array:
        output = self.weights.get("output.weight", self.weights["token_embd.weight"])
        logits: Array = hidden @ output.T
        return logits

    def _normed(self, x: Array, name: str) -> Array:
        mean_square = np.square(x).mean(axis=-1, keepdims=True)
        root = np.sqrt(mean_square + np.asarray(self.sizes.norm_eps, self.dtype))
        normed: Array = x / root * self.weights[f"{name}.weight"]
        return normed

    def _turned(self, x: Array, positions: NDArray[np.int64]) -> Array:
        """RoPE in a GGUF's order: elements 2i and 2i + 1 of a head are a point of the plane."""
        half = self.sizes.head_dim // 2
        frequencies = np.array([self.sizes.rope_base ** (-i / half) for i in range(half)])
        angles = positions[:, None, None] * frequencies
        cos, sin = np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)
        out = np.empty_like(x)
        out[..., 0::2] = cos * x[..., 0::2] - sin * x[..., 1::2]
        out[..., 1::2] = sin * x[..., 0::2] + cos * x[..., 1::2]
        return out
