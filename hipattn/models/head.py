"""What a llama does before its layers and after them: embeddings, logits, the next token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hipattn.arguments import integer
from hipattn.errors import ModelError
from hipattn.kernels import embedding, norm, sample
from hipattn.matmul import matmul
from hipattn.plan import ExecutionPlan
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, INT32, DeviceTensor

if TYPE_CHECKING:
    from hipattn.models.llama import Llama

__all__ = ["Head", "Sampling", "read"]


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


class Head:
    """A model's ends, and memory for a batch of them.

    Parameters
    ----------
    model
        The model.
    batch
        How many sequences, at most.
    stream
        Where the work goes.

    Attributes
    ----------
    logits : DeviceTensor
        [batch, vocabulary], float32.
    ids, numbers : DeviceTensor
        [batch], int32: the last tokens, and which sequences they are of.

    Raises
    ------
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(self, model: Llama, batch: int, stream: Stream) -> None:
        h = model.hyperparameters
        self._model, self._stream, self._eps = model, stream, h.norm_eps
        batch = integer("batch", batch, 1)
        self._memory: list[DeviceTensor] = []
        try:
            self._last = self._empty((batch, h.hidden), model.dtype)
            self.logits = self._empty((batch, h.vocabulary), FLOAT32)
            self._rows = self._empty((2, batch), INT32)
        except BaseException:
            self.close()
            raise
        self.ids, self.numbers = self._rows[0], self._rows[1]
        self._output = model.output.transpose(1, 0)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        self._memory.append(DeviceTensor.empty(shape, dtype, stream=self._stream))
        return self._memory[-1]

    def upload(self, ids: list[int], numbers: list[int]) -> None:
        """Set the first `ids` and `numbers`, in one copy."""
        rows = np.zeros(self._rows.shape, np.int32)
        rows[0, : len(ids)], rows[1, : len(ids)] = ids, numbers
        self._rows.copy_from(rows, stream=self._stream)

    def embed(self, ids: DeviceTensor, hidden: DeviceTensor) -> None:
        """Write the embeddings of `ids`, [batch, tokens], to `hidden`, [batch, tokens, hidden]."""
        embedding.launch(self._model.embedding, ids, hidden, stream=self._stream)

    def step(self, plan: ExecutionPlan, ids: DeviceTensor) -> DeviceTensor:
        """Take a token of each sequence, [batch], through a plan's layers, as one graph, and return the logits."""
        hidden = plan.hidden(ids.shape[0], 1)
        ids.buffer.used_on(self._stream)
        plan.step(
            hidden,
            before=lambda: self.embed(ids.reshape(*ids.shape, 1), hidden),
            after=lambda: self.finish(hidden),
            key=ids.pointer,
        )
        return self.logits[: ids.shape[0]]

    def finish(self, hidden: DeviceTensor) -> DeviceTensor:
        """Return the logits after each sequence's last token, the first rows of `logits`."""
        last, logits = self._last[: hidden.shape[0]], self.logits[: hidden.shape[0]]
        norm.launch(hidden[:, -1], self._model.norm, last, eps=self._eps, stream=self._stream)
        return matmul(last, self._output, logits, stream=self._stream)

    def finish_all(self, hidden: DeviceTensor, logits: DeviceTensor) -> None:
        """Write the logits after each token of one sequence to [tokens, vocabulary]; `hidden` is lost."""
        rows = hidden.reshape(*hidden.shape[1:])
        norm.launch(rows, self._model.norm, eps=self._eps, stream=self._stream)
        matmul(rows, self._output, logits, stream=self._stream)

    def choose(
        self, count: int, sampling: Sampling, *, step: int | DeviceTensor, numbers: DeviceTensor | None = None
    ) -> DeviceTensor:
        """Choose a token by each of the first rows of `logits`, and return them: the first of `ids`."""
        ids = self.ids[:count]
        options = asdict(sampling)
        sample.launch(self.logits[:count], ids, step=step, sequences=numbers, **options, stream=self._stream)
        return ids

    def close(self) -> None:
        """Free the memory, after the work that uses it."""
        for tensor in self._memory:
            tensor.buffer.close()

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(ids: DeviceTensor, model: Llama) -> list[int]:
    """Return tokens that `Head.choose` chose, in host memory.

    Raises
    ------
    ModelError
        There was none to choose.
    """
    tokens = [int(token) for token in ids.numpy()]
    if min(tokens) < 0:
        raise ModelError(
            f"the logits hold NaN: the model's numbers are too large for {model.dtype.name}; "
            "another dtype may hold them"
        )
    return tokens
