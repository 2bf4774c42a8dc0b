"""An answer, as it is generated."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from hipattn.models.head import Sampling, read
from hipattn.runtime.stream import Stream

if TYPE_CHECKING:
    from hipattn.models.llama import Llama

__all__ = ["Generation"]


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
        with (
            Stream(model.stream.device) as own,  # in which no other thread disturbs the capture of a step
            model.session(capacity=capacity, tokens=min(len(self.prompt), 512), stream=own) as session,
        ):
            session.prefill([self.prompt])
            while self.ended is None:
                (token,) = read(session.choose(**asdict(sampling)), model)
                self.seconds = time.perf_counter() - start
                self.first_token_seconds = self.first_token_seconds or self.seconds
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
