"""An answer, as it is generated."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hipattn.errors import ModelError
from hipattn.kernels import sample

if TYPE_CHECKING:
    from hipattn.models.llama import Llama

__all__ = ["Generation", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the arguments of `hipattn.kernels.sample.launch`.

    Raises
    ------
    ArgumentError
        A number is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        sample.check_numbers(**asdict(self))


class Generation:
    """The pieces of an answer's text, each as soon as its last byte is known. It can be iterated over once.

    Iterating raises `ModelError` where numbers are too large for the model's dtype, and `HipError` where a call fails.

    Attributes
    ----------
    prompt : list of int
        The prompt's tokens.
    tokens : list of int
        The answer's, so far, without what ended it.
    ended : str or None
        "stop": the model ended its answer; "length": it has as many tokens as were asked for; "context": no more fit
        into the model's context. None before that.
    first_token_seconds : float or None
        From the beginning to the first token: the prompt's way through the model.
    seconds : float or None
        From the beginning to the last token.
    """

    def __init__(self, model: Llama, prompt: Sequence[int], max_tokens: int, sampling: Sampling) -> None:
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.ended: str | None = None
        self.first_token_seconds: float | None = None
        self.seconds: float | None = None
        self._pieces = self._run(model, max_tokens, sampling)

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the first token; None as long as there are fewer than two."""
        if self.seconds is None or self.first_token_seconds is None or len(self.tokens) < 2:
            return None
        return (len(self.tokens) - 1) / (self.seconds - self.first_token_seconds)

    def text(self) -> str:
        """Generate what is not generated yet, and return its text."""
        return "".join(self)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _run(self, model: Llama, max_tokens: int, sampling: Sampling) -> Iterator[str]:
        context = model.hyperparameters.context
        # The last token is chosen, and does not go through the model.
        capacity = min(context, len(self.prompt) + max_tokens - 1)
        stream = model.tokenizer.stream()
        start = time.perf_counter()
        with model.session(capacity=capacity, tokens=min(len(self.prompt), 512)) as session:
            session.prefill([self.prompt])
            while self.ended is None:
                token = int(session.choose(**asdict(sampling)).numpy(stream=model.stream)[0])
                self.seconds = time.perf_counter() - start
                self.first_token_seconds = self.first_token_seconds or self.seconds
                if token < 0:
                    raise ModelError(
                        f"the logits after {session.length} tokens hold NaN: the model's numbers are too large for "
                        f"{model.dtype.name}; another dtype may hold them"
                    )
                if token in model.tokenizer.stops:
                    self.ended = "stop"
                    break
                self.tokens.append(token)
                if piece := stream.feed(token):
                    yield piece
                if len(self.tokens) == max_tokens:
                    self.ended = "length"
                elif session.length == context:
                    self.ended = "context"
                else:
                    session.step()
        if rest := stream.finish():
            yield rest
