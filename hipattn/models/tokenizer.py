"""Text to token ids and back, with the byte-level BPE that a GGUF carries."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from hipattn.errors import ArgumentError, ModelError
from hipattn.models.extra import models_extra
from hipattn.models.gguf_file import GGUFFile

__all__ = ["TextStream", "Tokenizer"]

# A token's type in GGUF that stands for itself in a text, whatever is around it: <|im_start|>.
CONTROL = 3

# What ends an answer, where a vocabulary has it: not every GGUF's metadata tells all of them.
ENDS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "</s>")


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
    stops : frozenset of int
        The tokens after which nothing more is to be generated: `eos`, and others that end a turn or a text.
    control : mapping of str to int
        The control tokens.

    Raises
    ------
    ModelError
        The GGUF has no tokenizer, or one of another kind.
    """

    bos: int | None
    eos: int | None
    stops: frozenset[int]
    control: dict[str, int]

    def __init__(self, file: GGUFFile) -> None:
        with models_extra():
            from tokenizers import Tokenizer as BytePairTokenizer
            from tokenizers import models, pre_tokenizers

        def value(key: str, default: Any = None) -> Any:
            return file.metadata.get(f"tokenizer.ggml.{key}", default)

        kind, split = value("model"), value("pre")
        if (kind, split) != ("gpt2", "smollm"):
            raise ModelError(f"{file.path}: tokenizer {kind!r} with split {split!r}; only gpt2 with smollm works")
        words, types, merges = value("tokens", []), value("token_type", []), value("merges", [])
        if not words or len(types) != len(words) or not all(" " in merge for merge in merges):
            raise ModelError(f"{file.path}: the tokenizer's vocabulary, token types or merges are damaged")
        self._words: list[str] = words
        self.bos, self.eos, *ends = (self._id(file, name) for name in ("bos", "eos", "eot", "eom"))
        marked = enumerate(zip(words, types, strict=True))
        self.control = {word: i for i, (word, type_) in marked if word and type_ == CONTROL}
        named = [self.control[word] for word in ENDS if word in self.control]
        self.stops = frozenset(i for i in (self.eos, *ends, *named) if i is not None)
        self._prefix = [self.bos] if value("add_bos_token", False) and self.bos is not None else []
        # The longest first: a name may begin with another one. Without any, what never matches.
        names = sorted(self.control, key=len, reverse=True)
        self._control = re.compile("(" + ("|".join(map(re.escape, names)) or "(?!)") + ")")
        vocabulary = {word: i for i, word in enumerate(words)}
        pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
        try:
            self._bpe = BytePairTokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        except Exception as error:  # what the library raises for a merge of unknown words
            raise ModelError(f"{file.path}: the tokenizer's merges are damaged: {error}") from error
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_words])

    def _id(self, file: GGUFFile, name: str) -> int | None:
        got: int | None = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if got is not None and (type(got) is not int or not 0 <= got < len(self._words)):
            raise ModelError(f"{file.path}: the tokenizer's {name} token is {got!r}, of {len(self._words)}")
        return got

    def encode(self, text: str, *, begin: bool = True, mark: str | None = None) -> list[int]:
        """Return the ids of `text`'s tokens.

        A control token's name in the text (``<|im_start|>``) becomes that token. A byte that the vocabulary
        lacks (SmolLM2's lacks those of a few control characters) is left out, as llama.cpp leaves it out.

        Parameters
        ----------
        text
            The text.
        begin
            Begin with `bos`, if the model wants that.
        mark
            A character that is taken out of the text after the control tokens have been found: a name with this
            character inside is plain text.

        Raises
        ------
        ArgumentError
            The text cannot be written in UTF-8.
        """
        ids = list(self._prefix) if begin else []
        for n, piece in enumerate(self._control.split(text)):
            if n % 2:
                ids.append(self.control[piece])
            elif piece:
                plain = piece if mark is None else piece.replace(mark, "")
                try:
                    ids += self._bpe.encode(plain, add_special_tokens=False).ids
                except TypeError:  # of half a surrogate pair
                    raise ArgumentError(f"text is {text!r}; it takes a text that can be written in UTF-8") from None
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control tokens included. Bytes that are no UTF-8 become U+FFFD.

        Raises
        ------
        ArgumentError
            An id is not in the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def stream(self) -> TextStream:
        """Return what turns tokens into text one by one, as they are generated."""
        return TextStream(self)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for, which may be part of a character.

        Raises
        ------
        ArgumentError
            The id is not in the vocabulary.
        """
        if not 0 <= token < len(self._words):
            raise ArgumentError(f"ids has {token}; the vocabulary's are 0 to {len(self._words) - 1}")
        word = self._words[token]
        try:
            return bytes(BYTES[letter] for letter in word)
        except KeyError:  # not spelled in letters for bytes: a name
            return word.encode()


class TextStream:
    """Text from tokens that come one by one; a character is held back until all of its bytes are there.

    What `feed` returned, joined, and then `finish`, is what `Tokenizer.decode` makes of the same tokens.

    Parameters
    ----------
    tokenizer
        Whose tokens they are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that is complete with this token, which may be empty.

        Raises
        ------
        ArgumentError
            The id is not in the vocabulary.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """Return what is held back, as U+FFFD, and begin anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _letters() -> dict[str, int]:
    """Return GPT-2's letters for the 256 bytes: a printable one is itself, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTES = _letters()
