"""A batch of sequences on its way through a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hipattn.arguments import instance, integer
from hipattn.errors import ArgumentError
from hipattn.kernels.rows import check_device
from hipattn.models.head import Head, Sampling
from hipattn.plan import ExecutionPlan
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, INT32, UINT8, DeviceTensor

if TYPE_CHECKING:
    from hipattn.models.llama import Llama

__all__ = ["Session"]


class Session:
    """Sequences and their KV cache. Token ids go up once; what is asked for comes down when it is asked for.

    ::

        with model.session(batch=2, capacity=256) as session:
            session.prefill([first, second])
            while going:
                ids = session.choose(temperature=0)
                show(ids.numpy())
                session.step()

    A step is captured in a graph the second time, and then replayed: see `ExecutionPlan.step`.

    Parameters
    ----------
    model
        The model.
    batch
        How many sequences.
    capacity
        How many tokens of each: at most the model's context.
    tokens
        How many tokens of each go through the layers at a time, at most.
    stream
        Where all work goes. Default: the model's.

    Attributes
    ----------
    plan : ExecutionPlan
    stream : Stream
        What other streams do with `logits` and `ids` has to wait for it.
    logits : DeviceTensor
        [batch, vocabulary], float32: after the last token of each sequence.
    ids : DeviceTensor
        [batch], int32: what `choose` chose last.

    Raises
    ------
    ArgumentError
        A size is not accepted.
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(self, model: Llama, batch: int, capacity: int, tokens: int, stream: Stream | None = None) -> None:
        h = model.hyperparameters
        if integer("capacity", capacity, 1) > h.context:
            raise ArgumentError(f"capacity is {capacity}; the model's context is {h.context}")
        self.model = model
        self.stream = model.stream if stream is None else instance("stream", stream, Stream)
        if self.stream is not model.stream:
            self.stream.wait(model.stream)
        options: Any = {"batch": batch, "tokens": tokens, "capacity": capacity, "method": model.method}
        self.plan = ExecutionPlan(model.spec, model.layers, **options, stream=self.stream)
        try:
            self._head = Head(model, self.plan.batch, self.stream)
        except BaseException:
            self.plan.close()
            raise
        self.logits, self.ids = self._head.logits, self._head.ids
        self._chosen = False

    @property
    def length(self) -> int:
        """How many tokens the longest sequence has."""
        return self.plan.length

    def prefill(self, prompts: Sequence[Sequence[int]]) -> DeviceTensor:
        """Begin anew with these sequences, and return `logits`.

        Sequences of different lengths are aligned at their ends: see `ExecutionPlan.reset`. The method "staged" does
        not take them.

        Raises
        ------
        ArgumentError
            The number of sequences is not the batch, one is empty, longer than the capacity, or has a token that is not
            in the vocabulary; or lengths differ, and the method is "staged". The session is as it was.
        HipError
            A call fails. The session is empty.
        """
        if len(prompts) != self.plan.batch:
            raise ArgumentError(f"prompts has {len(prompts)} sequences; the session is for {self.plan.batch}")
        sequences = [self._check(prompt) for prompt in prompts]
        ids, present = self._upload(sequences)
        self.plan.reset(present)
        self._chosen = False
        with self._undone():
            for start in range(0, ids.shape[1], self.plan.tokens):
                hidden = self._forward(ids[:, start : start + self.plan.tokens])
            return self._head.finish(hidden)

    def step(self, ids: DeviceTensor | None = None) -> DeviceTensor:
        """Append a token to each sequence, and return `logits`.

        Parameters
        ----------
        ids : [batch], int32
            On the device. Default: what `choose` chose.

        Raises
        ------
        ArgumentError
            `ids` does not fit; or the session is empty, or nothing was chosen.
        CacheFullError
            The session has no room for another token.
        HipError
            A call fails. The sequences are as they were.
        """
        self._check_begun()
        if ids is None and not self._chosen:
            raise ArgumentError("ids is None, and nothing was chosen; choose() comes first")
        ids = self.ids if ids is None else instance("ids", ids, DeviceTensor)
        if ids.shape != self.ids.shape or ids.dtype != INT32 or not ids.is_contiguous:
            layout = "contiguous" if ids.is_contiguous else "not contiguous"
            raise ArgumentError(
                f"ids is {ids.dtype} {ids.shape}, {layout}; it takes int32 {self.ids.shape}, contiguous"
            )
        check_device(self.stream, ids=ids)
        return self._head.step(self.plan, ids)

    def choose(self, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> DeviceTensor:
        """Choose each sequence's next token by `logits`, and return `ids`. Arguments: `hipattn.kernels.sample.launch`.

        Raises
        ------
        ArgumentError
            A number is out of its range, or the session is empty.
        HipError
            A call fails.
        """
        self._check_begun()
        sampling = Sampling(temperature, top_k, top_p, seed)
        self._head.choose(self.plan.batch, sampling, step=self.length)
        self._chosen = True
        return self.ids

    def logits_of(self, tokens: Sequence[int]) -> DeviceTensor:
        """Return the logits after each token of one sequence. The session, of batch 1, is empty after it.

        Returns
        -------
        logits : DeviceTensor
            [tokens, vocabulary], float32: new memory.

        Raises
        ------
        ArgumentError
            The session is of another batch, or the sequence is empty, longer than the capacity, or has a token that is
            not in the vocabulary. The session is as it was.
        HipError
            A call fails.
        """
        if self.plan.batch != 1:
            raise ArgumentError(f"tokens is one sequence; the session is for {self.plan.batch}")
        tokens = self._check(tokens)
        ids = DeviceTensor.from_numpy(np.array([tokens], np.int32), stream=self.stream)
        self.plan.reset()
        h = self.model.hyperparameters
        logits = DeviceTensor.empty((len(tokens), h.vocabulary), FLOAT32, stream=self.stream)
        try:
            for start in range(0, len(tokens), self.plan.tokens):
                hidden = self._forward(ids[:, start : start + self.plan.tokens])
                self._head.finish_all(hidden, logits[start : start + hidden.shape[1]])
        finally:
            self.plan.reset()  # `self.logits` would not be of these tokens
        return logits

    def close(self) -> None:
        """Free the session's memory, after the work that uses it. The model stays."""
        self.plan.close()
        self._head.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check(self, tokens: Sequence[int]) -> list[int]:
        """Return a sequence's tokens, which fit the session."""
        ids = self.model.check_tokens(tokens)
        assert self.plan.cache is not None
        if len(ids) > self.plan.cache.capacity:
            raise ArgumentError(
                f"the prompt has {len(ids)} tokens; the session's capacity is {self.plan.cache.capacity}"
            )
        return ids

    def _check_begun(self) -> None:
        if not self.length:
            raise ArgumentError("the session is empty; prefill() comes first")

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Take back what an error leaves half done."""
        length = self.length
        try:
            yield
        except BaseException:
            self.plan.truncate(length)
            raise

    def _forward(self, ids: DeviceTensor) -> DeviceTensor:
        hidden = self.plan.hidden(*ids.shape)
        self._head.embed(ids, hidden)
        return self.plan.run(hidden)

    def _upload(self, sequences: Sequence[Sequence[int]]) -> tuple[DeviceTensor, DeviceTensor | None]:
        """Return the sequences' ids, aligned at their ends, and which of the cache's places hold one: in one copy."""
        longest = max(map(len, sequences))
        ids = np.zeros((len(sequences), longest), np.int32)
        assert self.plan.cache is not None
        present = np.ones((len(sequences), self.plan.cache.capacity), np.uint8)
        for row, there, sequence in zip(ids, present, sequences, strict=True):
            row[longest - len(sequence) :] = sequence
            there[: longest - len(sequence)] = 0
        if present.all():
            return DeviceTensor.from_numpy(ids, stream=self.stream), None
        both: npt.NDArray[np.uint8] = np.concatenate((ids.view(np.uint8).ravel(), present.ravel()))
        buffer = DeviceTensor.from_numpy(both, stream=self.stream).buffer
        return (
            DeviceTensor(buffer, ids.shape, INT32),
            DeviceTensor(buffer, present.shape, UINT8, offset=ids.nbytes),
        )
