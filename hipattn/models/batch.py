"""Answers to several prompts at once: as one ends, the next prompt takes its place in the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hipattn.arguments import integer
from hipattn.attn.paged_cache import PagedKVCache
from hipattn.errors import ArgumentError, OutOfPagesError
from hipattn.models.head import Head, Sampling, read
from hipattn.models.tokenizer import TextStream
from hipattn.paged_plan import PagedPlan
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

if TYPE_CHECKING:
    from hipattn.models.llama import Llama

__all__ = ["BatchGeneration"]


@dataclass
class _Answer:
    """A prompt and what is known of its answer."""

    number: int
    prompt: list[int]
    text: TextStream
    tokens: list[int] = field(default_factory=list)
    ended: str | None = None
    sequence: int = -1  # in the cache, while it is in the batch


class BatchGeneration:
    """Answers to prompts, with their keys and values in pages that they share. It can be iterated over once.

    Each step appends a token to every sequence of the batch. A prompt joins as soon as there is a place and pages for
    it. Where pages run out, the sequence that joined last leaves, and goes on later from where it was: what it says
    depends neither on that nor on what else is in the batch, beyond rounding: with a cache of 8 bits that of the keys
    and values too, as those that are computed again see each other as they were.

    Attributes
    ----------
    tokens : list of list of int
        The answers', so far, without what ended them.
    ended : list of str or None
        Why each answer ended: see `Generation`.
    """

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        sampling: Sampling,
        *,
        batch: int,
        page_size: int,
        pages: int | None,
        dtype: npt.DTypeLike,
    ) -> None:
        self._model, self._max_tokens, self._sampling = model, integer("max_tokens", max_tokens, 1), sampling
        self._answers = [_Answer(i, list(ids), model.tokenizer.stream()) for i, ids in enumerate(prompts)]
        if not self._answers:
            raise ArgumentError("prompts is empty; it takes one or more")
        self._batch = min(integer("batch", batch, 1), len(self._answers))
        self._page_size = integer("page_size", page_size, 1)
        self._context = model.hyperparameters.context
        # The last token is chosen, and does not go through the model.
        longest = min(self._context, max(len(answer.prompt) for answer in self._answers) + max_tokens - 1)
        each = -(-longest // self._page_size)
        self._pages = self._batch * each if pages is None else integer("pages", pages, 1)
        if self._pages < each:
            raise ArgumentError(
                f"pages is {pages}; the longest prompt and its answer take {each} of {page_size} tokens"
            )
        self._longest, self._dtype = longest, dtype
        self._pieces = self._run()

    @property
    def tokens(self) -> list[list[int]]:
        """Each answer's tokens."""
        return [answer.tokens for answer in self._answers]

    @property
    def ended(self) -> list[str | None]:
        """Why each answer ended."""
        return [answer.ended for answer in self._answers]

    def texts(self) -> list[str]:
        """Generate what is not generated yet, and return each answer's text."""
        texts = [""] * len(self._answers)
        for number, piece in self:
            texts[number] += piece
        return texts

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self._pieces

    def _run(self) -> Iterator[tuple[int, str]]:
        model, spec = self._model, self._model.spec
        sizes = len(model.layers), self._pages, self._page_size, spec.heads_kv, spec.head_dim
        with (
            Stream(model.stream.device) as stream,  # in which no other thread disturbs the capture of a step
            PagedKVCache(*sizes, dtype=self._dtype, stream=stream) as cache,
            PagedPlan(
                spec,
                model.layers,
                cache,
                batch=self._batch,
                tokens=self._longest,
                method=model.method,
                stream=stream,
            ) as plan,
            Head(model, self._batch, stream) as head,
        ):
            stream.wait(model.stream)
            waiting, running = deque(self._answers), list[_Answer]()
            there: list[_Answer] = []  # whose last tokens the head has
            while waiting or running:
                while waiting and len(running) < self._batch and self._fits(waiting[0], running, cache):
                    answer, there = waiting.popleft(), []
                    running.append(answer)
                    yield from self._take(answer, self._join(answer, cache, plan, head))
                running = self._without_ended(running, cache)
                if not running:
                    continue
                try:
                    plan.extend([answer.sequence for answer in running], 1)
                except OutOfPagesError:
                    waiting.appendleft(running.pop())
                    cache.free(waiting[0].sequence)
                    continue
                if there != running:
                    head.upload([answer.tokens[-1] for answer in running], [answer.number for answer in running])
                    there = list(running)
                for answer, token in zip(running, self._step(len(running), plan, head), strict=True):
                    yield from self._take(answer, token)
                running = self._without_ended(running, cache)

    def _fits(self, answer: _Answer, running: Sequence[_Answer], cache: PagedKVCache) -> bool:
        """Return whether there are pages for an answer and for the next step of all, so that what joins gets on."""
        tokens = min(len(answer.prompt) + len(answer.tokens) + 1, self._longest)
        taken = cache.pages_needed([each.sequence for each in running], 1) if running else 0
        return cache.free_pages >= -(-tokens // self._page_size) + taken

    def _join(self, answer: _Answer, cache: PagedKVCache, plan: PagedPlan, head: Head) -> int:
        """Take a prompt, and what was said before its sequence left, through the model, and return the next token."""
        ids = np.array([answer.prompt + answer.tokens], np.int32)
        answer.sequence = cache.new()
        plan.extend([answer.sequence], ids.size)
        head.upload([0], [answer.number])
        hidden = plan.hidden(*ids.shape)
        head.embed(DeviceTensor.from_numpy(ids, stream=plan.stream), hidden)
        head.finish(plan.run(hidden))
        return self._chosen(1, plan, head)[0]

    def _step(self, count: int, plan: PagedPlan, head: Head) -> list[int]:
        head.step(plan, head.ids[:count])
        return self._chosen(count, plan, head)

    def _chosen(self, count: int, plan: PagedPlan, head: Head) -> list[int]:
        ids = head.choose(count, self._sampling, step=plan.lengths, numbers=head.numbers[:count])
        return read(ids, self._model)

    def _take(self, answer: _Answer, token: int) -> Iterator[tuple[int, str]]:
        if token in self._model.tokenizer.stops:
            answer.ended = "stop"
        else:
            answer.tokens.append(token)
            if piece := answer.text.feed(token):
                yield answer.number, piece
            if len(answer.tokens) == self._max_tokens:
                answer.ended = "length"
            elif len(answer.prompt) + len(answer.tokens) > self._context:
                answer.ended = "context"
        if answer.ended and (rest := answer.text.finish()):
            yield answer.number, rest

    @staticmethod
    def _without_ended(running: list[_Answer], cache: PagedKVCache) -> list[_Answer]:
        for answer in running:
            if answer.ended:
                cache.free(answer.sequence)
        return [answer for answer in running if not answer.ended]
