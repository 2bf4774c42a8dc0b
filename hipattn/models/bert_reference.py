"""A BERT encoder for sentence embeddings in NumPy float64, written from the architecture.

x = norm(word[token] + position[0, 1, ...] + type[0])
each layer:
    x = norm(x + Wo attention(Wq x, Wk x, Wv x))     every token sees every token; all products have a bias
    x = norm(x + W2 gelu(W1 x))
embedding = mean of x over the tokens, divided by its length
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hipattn.attn import reference
from hipattn.models.bert_file import BertHyperparameters
from hipattn.models.weights import Weight

Array = NDArray[Any]

erf = np.vectorize(math.erf, otypes=[np.float64])


class BertReference:
    """One sequence after the other through a BERT encoder."""

    def __init__(self, sizes: BertHyperparameters, weights: Iterable[Weight]) -> None:
        self.sizes = sizes
        self.weights = {weight.name: weight.array.astype(np.float64) for weight in weights}

    def embed(self, tokens: ArrayLike) -> Array:
        """Return the sentence's embedding, [hidden], of length 1."""
        mean: Array = self.forward(tokens).mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def forward(self, tokens: ArrayLike) -> Array:
        """Return what the last layer makes of each token, [tokens, hidden]."""
        ids = np.asarray(tokens, np.int64)
        x: Array = self.weights["embeddings.word_embeddings.weight"][ids]
        x = x + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + self.weights["embeddings.token_type_embeddings.weight"][0]
        x = self._normed(x, "embeddings")
        for layer in range(self.sizes.layers):
            name = f"encoder.layer.{layer}"
            x = self._normed(x + self._attention(x, f"{name}.attention"), f"{name}.attention.output")
            inner = self._product(x, f"{name}.intermediate.dense")
            gelu = inner * (1 + erf(inner / math.sqrt(2))) / 2
            x = self._normed(x + self._product(gelu, f"{name}.output.dense"), f"{name}.output")
        return x

    def _attention(self, x: Array, name: str) -> Array:
        shape = (1, len(x), self.sizes.heads, self.sizes.head_dim)
        q, k, v = (self._product(x, f"{name}.self.{each}").reshape(shape) for each in ("query", "key", "value"))
        return self._product(reference.attention(q, k, v).reshape(x.shape), f"{name}.output.dense")

    def _product(self, x: Array, name: str) -> Array:
        product: Array = x @ self.weights[f"{name}.weight"].T
        return product + self.weights[f"{name}.bias"]

    def _normed(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + self.sizes.norm_eps)
        normed: Array = scaled * self.weights[f"{name}.LayerNorm.weight"] + self.weights[f"{name}.LayerNorm.bias"]
        return normed
