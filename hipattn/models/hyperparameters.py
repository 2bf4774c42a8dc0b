"""The numbers that describe a llama model, from a GGUF's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hipattn.errors import ModelError
from hipattn.models.gguf_file import GGUFFile

__all__ = ["Hyperparameters"]


@dataclass(frozen=True)
class Hyperparameters:
    """The shape of a decoder with RMSNorm, RoPE, grouped-query attention and SwiGLU.

    Attributes
    ----------
    architecture : str
        "llama", the only one supported.
    layers, hidden, ffn, heads, kv_heads, head_dim : int
        Sizes. `heads` is a multiple of `kv_heads`.
    rope_base : float
        RoPE turns pair i of a head by position · rope_base^(−2i / head_dim). All of a head is turned.
    norm_eps : float
        Added to the mean square in RMSNorm.
    context : int
        The longest sequence that the model was trained for.
    vocabulary : int
        The number of tokens.
    """

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_base: float
    norm_eps: float
    context: int
    vocabulary: int

    @classmethod
    def read(cls, file: GGUFFile) -> Hyperparameters:
        """Read them from `file`.

        Raises
        ------
        ModelError
            The architecture or one of its options is not supported, or a value is missing or makes no sense.
        """
        architecture = file.metadata.get("general.architecture")
        if architecture != "llama":
            raise ModelError(f"{file.path}: architecture {architecture!r} is not supported; llama is")

        def value(key: str, kind: type[int] | type[float], default: Any = None) -> Any:
            got = file.metadata.get(f"llama.{key}", default)
            if type(got) is not kind or got <= 0:
                raise ModelError(f"{file.path}: llama.{key} is {got!r}, expected a positive {kind.__name__}")
            return got

        hidden, heads = value("embedding_length", int), value("attention.head_count", int)
        head_dim = value("attention.key_length", int, hidden // heads)
        found = cls(
            architecture=architecture,
            layers=value("block_count", int),
            hidden=hidden,
            ffn=value("feed_forward_length", int),
            heads=heads,
            kv_heads=value("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            rope_base=value("rope.freq_base", float, 10000.0),
            norm_eps=value("attention.layer_norm_rms_epsilon", float),
            context=value("context_length", int),
            vocabulary=value("vocab_size", int, len(file.metadata.get("tokenizer.ggml.tokens", ()))),
        )
        if found.heads % found.kv_heads:
            raise ModelError(f"{file.path}: {found.heads} heads are no multiple of {found.kv_heads} KV heads")
        if head_dim % 2:
            raise ModelError(f"{file.path}: head_dim is {head_dim}; RoPE turns pairs, and takes an even number")
        _refuse_unknown_options(file, head_dim)
        return found


def _refuse_unknown_options(file: GGUFFile, head_dim: int) -> None:
    """Refuse what would change the result if it were ignored."""
    plain = {
        "rope.dimension_count": head_dim,
        "attention.value_length": head_dim,
        "rope.scaling.type": "none",
        "expert_count": 0,
    }
    for key, only in plain.items():
        got = file.metadata.get(f"llama.{key}", only)
        if got != only:
            raise ModelError(f"{file.path}: llama.{key} is {got!r}; only {only!r} is supported")
    if "rope_freqs.weight" in file:
        raise ModelError(f"{file.path}: RoPE with its own frequencies (rope_freqs.weight) is not supported")
