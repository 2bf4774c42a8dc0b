"""Text to token ids and back, with the byte-level BPE that a GGUF carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hipattn.errors import ArgumentError, ModelError
from hipattn.models.extra import models_extra
from hipattn.models.gguf_file import GGUFFile

__all__ = ["Tokenizer"]

# A token's type in GGUF that stands for itself in a text, whatever is around it: <|im_start|>.
CONTROL = 3


class Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2's, with the split into words that the GGUF names.

    Only the split "smollm" is supported: each digit stands alone, then GPT-2's words.

    Parameters
    ----------
    file
        The GGUF that holds the vocabulary and the merges.

    Attributes
    ----------
    bos, eos : int or None
        The tokens that begin and end a text.

    Raises
    ------
    ModelError
        The GGUF has no tokenizer, or one of another kind.
    """

    bos: int | None
    eos: int | None

    def __init__(self, file: GGUFFile) -> None:
        with models_extra():
            from tokenizers import AddedToken, decoders, models, pre_tokenizers
            from tokenizers import Tokenizer as BytePairTokenizer

        def value(key: str, default: Any = None) -> Any:
            return file.metadata.get(f"tokenizer.ggml.{key}", default)

        kind, split = value("model"), value("pre")
        if (kind, split) != ("gpt2", "smollm"):
            raise ModelError(f"{file.path}: tokenizer {kind!r} with split {split!r}; only gpt2 with smollm works")
        words, types, merges = value("tokens", []), value("token_type", []), value("merges", [])
        if not words or len(types) != len(words) or not all(" " in merge for merge in merges):
            raise ModelError(f"{file.path}: the tokenizer's vocabulary, token types or merges are damaged")
        self.bos, self.eos = value("bos_token_id"), value("eos_token_id")
        self._prefix = [self.bos] if value("add_bos_token", False) and self.bos is not None else []
        self._count = len(words)
        vocabulary = {word: i for i, word in enumerate(words)}
        pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
        try:
            self._bpe = BytePairTokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        except Exception as error:  # what the library raises for a merge of unknown words
            raise ModelError(f"{file.path}: the tokenizer's merges are damaged: {error}") from error
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_words])
        self._bpe.decoder = decoders.ByteLevel()
        control = [word for word, type_ in zip(words, types, strict=True) if type_ == CONTROL]
        self._bpe.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`'s tokens.

        A control token's name in the text (``<|im_start|>``) becomes that token. A byte that the vocabulary
        lacks (SmolLM2's lacks those of a few control characters) is left out, as llama.cpp leaves it out.
        """
        return self._prefix + self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control tokens included. Bytes that are no UTF-8 become U+FFFD.

        Raises
        ------
        ArgumentError
            An id is not in the vocabulary.
        """
        for i in ids:
            if not 0 <= i < self._count:
                raise ArgumentError(f"ids has {i}; the vocabulary's are 0 to {self._count - 1}")
        return self._bpe.decode(list(ids), skip_special_tokens=False)
