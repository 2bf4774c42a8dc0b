"""A BERT encoder's files: config.json, tokenizer.json and model.safetensors."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hipattn.errors import ArgumentError, ModelError
from hipattn.models.extra import models_extra
from hipattn.models.safetensors_file import SafetensorsFile
from hipattn.models.weights import Weights, layers

__all__ = ["BertHyperparameters", "BertTokenizer", "BertWeights"]

# Before the first layer, and of each layer behind encoder.layer.N. Matrices are [out, in].
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": ("vocabulary", "hidden"),
    "embeddings.position_embeddings.weight": ("context", "hidden"),
    "embeddings.token_type_embeddings.weight": ("types", "hidden"),
    "embeddings.LayerNorm.weight": ("hidden",),
    "embeddings.LayerNorm.bias": ("hidden",),
}
LAYER = {
    "attention.self.query": ("hidden", "hidden"),
    "attention.self.key": ("hidden", "hidden"),
    "attention.self.value": ("hidden", "hidden"),
    "attention.output.dense": ("hidden", "hidden"),
    "attention.output.LayerNorm": ("hidden",),
    "intermediate.dense": ("ffn", "hidden"),
    "output.dense": ("hidden", "ffn"),
    "output.LayerNorm": ("hidden",),
}
# 0, 1, 2, ...; and a layer for another task than sentence embeddings.
IGNORED = frozenset({"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"})


@dataclass(frozen=True)
class BertHyperparameters:
    """The shape of an encoder with absolute positions, LayerNorm after each step, and GELU by the error function.

    Attributes
    ----------
    layers, hidden, ffn, heads, head_dim : int
        Sizes; ``hidden == heads * head_dim``.
    norm_eps : float
        Added to the variance in LayerNorm.
    context : int
        The longest sequence: so many positions have an embedding.
    vocabulary, types : int
        The numbers of tokens and of token types.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    head_dim: int
    norm_eps: float
    context: int
    vocabulary: int
    types: int

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> BertHyperparameters:
        """Read them from a config.json.

        Raises
        ------
        ModelError
            The file cannot be read, the architecture or one of its options is not supported, or a value is missing
            or makes no sense.
        """
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{path} is no JSON: {error}") from error
        if not isinstance(config, dict):
            raise ModelError(f"{path} holds a {type(config).__name__}, expected an object")

        for key, only in {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}.items():
            got = config.get(key, only if key == "position_embedding_type" else None)
            if got != only:
                raise ModelError(f"{path}: {key} is {got!r}; only {only!r} is supported")

        def value(key: str, kind: type[int] | type[float]) -> Any:
            got = config.get(key)
            if type(got) is not kind or not 0 < got < float("inf"):
                raise ModelError(f"{path}: {key} is {got!r}, expected a positive {kind.__name__}")
            return got

        hidden, heads = value("hidden_size", int), value("num_attention_heads", int)
        if hidden % heads:
            raise ModelError(f"{path}: hidden_size {hidden} is no multiple of {heads} heads")
        return cls(
            layers=value("num_hidden_layers", int),
            hidden=hidden,
            ffn=value("intermediate_size", int),
            heads=heads,
            head_dim=hidden // heads,
            norm_eps=value("layer_norm_eps", float),
            context=value("max_position_embeddings", int),
            vocabulary=value("vocab_size", int),
            types=value("type_vocab_size", int),
        )


class BertWeights(Weights):
    """The tensors of a BERT encoder: embeddings, then layer after layer.

    Parameters
    ----------
    file
        The file that holds them.
    hyperparameters
        The sizes.

    Attributes
    ----------
    hyperparameters : BertHyperparameters
        The sizes.

    Raises
    ------
    ModelError
        A tensor is missing, has another shape than the sizes want, is not known, or is of no supported dtype.
    """

    def __init__(self, file: SafetensorsFile, hyperparameters: BertHyperparameters) -> None:
        self.hyperparameters = h = hyperparameters
        dimensions: dict[str, tuple[str, ...]] = dict(EMBEDDINGS)
        for layer in layers(file, h.layers):
            for name, names in LAYER.items():
                dimensions[f"encoder.layer.{layer}.{name}.weight"] = names
                dimensions[f"encoder.layer.{layer}.{name}.bias"] = names[:1]
        sizes = {"hidden": h.hidden, "ffn": h.ffn, "context": h.context}
        sizes |= {"vocabulary": h.vocabulary, "types": h.types}
        super().__init__(file, dimensions, sizes, ignored=IGNORED)


class BertTokenizer:
    """The tokenizer of a tokenizer.json.

    Parameters
    ----------
    path
        The tokenizer.json.
    hyperparameters
        The sizes of the model that it belongs to.

    Raises
    ------
    ModelError
        The file cannot be read, or has more tokens than the model.
    """

    def __init__(self, path: str | os.PathLike[str], hyperparameters: BertHyperparameters) -> None:
        with models_extra():
            from tokenizers import Tokenizer
        try:
            self._tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        except Exception as error:  # what the library raises
            raise ModelError(f"{path} is no tokenizer.json: {error}") from error
        count = self._tokenizer.get_vocab_size()
        if count > hyperparameters.vocabulary:
            raise ModelError(f"{path} has {count} tokens, the model {hyperparameters.vocabulary}")
        self._context = hyperparameters.context
        # The file may ask for either; a sentence is neither cut nor filled up here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, argument: str = "text") -> list[int]:
        """Return the ids of `text`'s tokens, between those that begin and end a sequence.

        Messages name `argument`.

        Raises
        ------
        ArgumentError
            There are more than the model has positions for, or the text cannot be written in UTF-8.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except TypeError:  # of half a surrogate pair
            raise ArgumentError(f"{argument} is {text!r}; it takes a text that can be written in UTF-8") from None
        if len(ids) > self._context:
            raise ArgumentError(f"{argument} has {len(ids)} tokens; the model takes {self._context}")
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`, as far as the tokens tell it, the special ones included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text
