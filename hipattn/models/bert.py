"""BERT encoders on a device, for sentence embeddings."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hipattn.arguments import instance, integer
from hipattn.errors import ArgumentError, ClosedError, ModelError
from hipattn.kernels import embedding, norm
from hipattn.layers import LayerSpec, LayerWeights
from hipattn.matmul import matmul
from hipattn.models.bert_file import BertHyperparameters, BertTokenizer, BertWeights
from hipattn.models.safetensors_file import SafetensorsFile
from hipattn.models.upload import upload
from hipattn.plan import ExecutionPlan, check_method
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT16, FLOAT32, INT32, UINT8, DeviceTensor, as_dtype

__all__ = ["Bert"]


class Bert:
    """A model on a device. Not for use by two threads at once.

    Parameters
    ----------
    folder
        Where config.json, tokenizer.json and model.safetensors are. All are checked before anything is allocated.
    dtype
        Of weights and activations. Default: float16; float32 on a simulated GPU, where products of 16 bits are
        computed in 32.
    method
        How attention is computed: see `ExecutionPlan`. With "staged" only texts of one length share a batch.
    stream
        Where all work goes. Default: the default stream of device 0.

    Attributes
    ----------
    hyperparameters : BertHyperparameters
        The sizes.
    tokenizer : BertTokenizer
    spec : LayerSpec
        What a layer computes.
    layers : list of LayerWeights
    words, positions, types : DeviceTensor
        The embeddings: [vocabulary, hidden], [context, hidden] and [types, hidden].
    norm, norm_bias : DeviceTensor
        [hidden], of the LayerNorm over their sum.
    dtype : numpy.dtype
    method : str
    stream : Stream

    Raises
    ------
    ArgumentError
        `dtype`, `method` or `stream` is not accepted.
    ModelError
        A file cannot be read, they do not fit together, or the architecture is not supported.
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: npt.DTypeLike | None = None,
        method: str = "auto",
        stream: Stream | None = None,
    ) -> None:
        folder = Path(folder)
        self.hyperparameters = h = BertHyperparameters.read(folder / "config.json")
        self.tokenizer = BertTokenizer(folder / "tokenizer.json", h)
        weights = BertWeights(SafetensorsFile(folder / "model.safetensors"), h)
        self.stream = Device(0).default_stream if stream is None else instance("stream", stream, Stream)
        default = FLOAT32 if self.stream.device.simulated else FLOAT16
        self.dtype, self.method = default if dtype is None else as_dtype(dtype), check_method(method)
        self.spec = LayerSpec(
            hidden=h.hidden,
            heads=h.heads,
            heads_kv=h.heads,
            head_dim=h.head_dim,
            ffn=h.ffn,
            norm="layer",
            norm_eps=h.norm_eps,
            norm_first=False,
            activation="gelu",
            gated=False,
            bias=True,
            rope=None,
            causal=False,
        )
        self.layers: list[LayerWeights] = []
        self._tensors: list[DeviceTensor] = []
        self._workspace: _Workspace | None = None
        try:
            self.words = self._empty(h.vocabulary, h.hidden)
            self.positions = self._empty(h.context, h.hidden)
            self.types = self._empty(h.types, h.hidden)
            self.norm, self.norm_bias = self._empty(h.hidden), self._empty(h.hidden)
            into = {
                "embeddings.word_embeddings.weight": self.words,
                "embeddings.position_embeddings.weight": self.positions,
                "embeddings.token_type_embeddings.weight": self.types,
                "embeddings.LayerNorm.weight": self.norm,
                "embeddings.LayerNorm.bias": self.norm_bias,
            }
            for layer in range(h.layers):
                self.layers.append(LayerWeights.empty(self.spec, self.dtype, stream=self.stream))
                into |= {f"encoder.layer.{layer}.{name}": x for name, x in _by_name(self.spec, self.layers[-1]).items()}
            upload(weights, into, stream=self.stream)
            # 0, 1, 2, ...: each token's position; and the first of them each token's type.
            self._counting = self._kept(np.arange(h.context, dtype=np.int32))
            # RMSNorm by this weight, x / √(mean(x²)) / √hidden, is x / |x|.
            self._unit = self._kept(np.full(h.hidden, 1 / math.sqrt(h.hidden), np.float32))
        except BaseException:
            self.close()
            raise

    def _empty(self, *shape: int) -> DeviceTensor:
        self._tensors.append(DeviceTensor.empty(shape, self.dtype, stream=self.stream))
        return self._tensors[-1]

    def _kept(self, array: npt.NDArray[Any]) -> DeviceTensor:
        self._tensors.append(DeviceTensor.from_numpy(array, stream=self.stream))
        return self._tensors[-1]

    def embed(self, texts: str | Sequence[str], *, batch: int = 32) -> npt.NDArray[np.float32]:
        """Return the embeddings of texts: the mean of what the last layer makes of their tokens, of length 1.

        Texts of like length share a batch, which is one copy to the device and one back. The memory that batches are
        computed in is allocated before the first, and kept; it grows where a later call needs more.

        Parameters
        ----------
        texts
            A text, or any number of them.
        batch
            How many are computed at a time, at most.

        Returns
        -------
        array of float32
            [texts, hidden], in host memory. The dot product of two is their cosine similarity.

        Raises
        ------
        ArgumentError
            A text is empty, or has more tokens than the model has positions for: nothing was launched.
        ClosedError
            The model is closed.
        ModelError
            Numbers on the way are too large for the dtype.
        HipError
            A call fails, or the device has too little memory.
        """
        batch = integer("batch", batch, 1)
        if self.words.buffer.closed:
            raise ClosedError("the model is closed")
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            texts = [texts]  # what is no text is refused below
        sequences = [self._encode(text, f"texts[{i}]") for i, text in enumerate(texts)]
        embeddings = np.empty((len(sequences), self.hyperparameters.hidden), np.float32)
        batches = list(_batches([len(sequence) for sequence in sequences], batch, equal=self.method == "staged"))
        if batches:
            workspace = self._reserve(max(map(len, batches)), max(map(len, sequences)))
        for rows in batches:
            pooled = self._forward([sequences[i] for i in rows], workspace)
            embeddings[rows] = pooled.numpy(stream=self.stream)
        for i in np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[:1]:
            raise ModelError(
                f"the embedding of texts[{i}] holds NaN: the model's numbers are too large for {self.dtype.name}; "
                "another dtype may hold them"
            )
        return embeddings

    def _encode(self, text: str, name: str) -> list[int]:
        if not instance(name, text, str).strip():
            raise ArgumentError(f"{name} is {text!r}; it takes a text")
        return self.tokenizer.encode(text, name)

    def _forward(self, sequences: Sequence[Sequence[int]], workspace: _Workspace) -> DeviceTensor:
        """Return the sequences' embeddings, [sequences, hidden] in the workspace."""
        plan, stream = workspace.plan, self.stream
        ids, weights, present = workspace.upload(sequences)
        batch, tokens = ids.shape
        plan.reset(present)
        hidden = plan.hidden(batch, tokens)
        positions = self._counting[:tokens].broadcast_to(ids.shape)
        types = self._counting[:1].broadcast_to(ids.shape)
        added = (self.positions, positions), (self.types, types)
        embedding.launch(self.words, ids, hidden, added=added, stream=stream)
        norm.launch(hidden, self.norm, bias=self.norm_bias, eps=self.spec.norm_eps, kind="layer", stream=stream)
        plan.run(hidden)
        pooled = workspace.pooled[:batch]
        matmul(weights, hidden, pooled, stream=stream)
        pooled = pooled.reshape(batch, self.spec.hidden)
        norm.launch(pooled, self._unit, eps=0, stream=stream)
        return pooled

    def _reserve(self, batch: int, tokens: int) -> _Workspace:
        """Return memory for so many sequences of so many tokens."""
        kept = self._workspace
        if kept is not None:
            if kept.plan.batch >= batch and kept.plan.tokens >= tokens:
                return kept
            batch, tokens = max(batch, kept.plan.batch), max(tokens, kept.plan.tokens)
            self._workspace = None
            kept.close()
        self._workspace = _Workspace(self, batch, tokens)
        return self._workspace

    def close(self) -> None:
        """Free the weights and the memory for batches, after the work that uses them."""
        workspace, self._workspace = self._workspace, None
        if workspace is not None:
            workspace.close()
        for tensor in self._tensors:
            tensor.buffer.close()
        for weights in self.layers:
            weights.close()

    def __enter__(self) -> Bert:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Workspace:
    """Where batches of up to so many texts of so many tokens are computed: a plan, what goes up, what comes down.

    Raises
    ------
    ArgumentError
        The plan refuses its arguments.
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(self, model: Bert, batch: int, tokens: int) -> None:
        options: Any = {"batch": batch, "tokens": tokens, "method": model.method, "stream": model.stream}
        self.plan = ExecutionPlan(model.spec, model.layers, **options)
        self._made: list[DeviceTensor] = []
        try:
            nbytes = batch * tokens * (INT32.itemsize + model.dtype.itemsize + UINT8.itemsize)
            self._uploaded = self._empty((nbytes,), UINT8, model.stream)
            self.pooled = self._empty((batch, 1, model.spec.hidden), FLOAT32, model.stream)
        except BaseException:
            self.close()
            raise

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> DeviceTensor:
        self._made.append(DeviceTensor.empty(shape, dtype, stream=stream))
        return self._made[-1]

    def upload(self, sequences: Sequence[Sequence[int]]) -> tuple[DeviceTensor, DeviceTensor, DeviceTensor | None]:
        """Return the sequences' ids, the weights of a mean over their tokens, and where there are tokens: in one copy.

        Returns
        -------
        ids : [sequences, tokens], int32
            Filled up at the end.
        weights : [sequences, 1, tokens], of the plan's dtype
            1 for a token, which a factor makes 1 / length: only the direction of the mean is wanted. 0 for none.
        present : [sequences, tokens], uint8, or None
            None if all have the same length.
        """
        lengths = [len(sequence) for sequence in sequences]
        shape = len(sequences), max(lengths)
        ids = np.zeros(shape, np.int32)
        present = np.arange(shape[1]) < np.array(lengths)[:, None]
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        views, start = [], 0
        # From the widest elements to the narrowest, so that all are aligned.
        arrays = ids, present.astype(self.plan.dtype)[:, None], present.astype(np.uint8)
        for array in arrays:
            offset = start // array.itemsize
            views.append(DeviceTensor(self._uploaded.buffer, array.shape, array.dtype, offset=offset))
            start += array.nbytes
        flat = np.concatenate([array.view(np.uint8).ravel() for array in arrays])
        self._uploaded[:start].copy_from(flat, stream=self.plan.stream)
        return views[0], views[1], None if present.all() else views[2]

    def close(self) -> None:
        self.plan.close()
        for tensor in self._made:
            tensor.buffer.close()


def _batches(lengths: Sequence[int], most: int, *, equal: bool) -> Iterator[list[int]]:
    """Yield the places of texts that are computed together: up to `most`, of like length, or with `equal` of one."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [list(group) for _, group in groupby(order, lengths.__getitem__)] if equal else [order]
    for group in groups:
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _by_name(spec: LayerSpec, weights: LayerWeights) -> dict[str, DeviceTensor]:
    """Return where the tensors of a file's layer go."""
    size = spec.hidden
    qkv = {
        f"attention.self.{name}.{kind}": tensor[i * size : (i + 1) * size]
        for i, name in enumerate(("query", "key", "value"))
        for kind, tensor in (("weight", weights.qkv), ("bias", weights.qkv_bias))
        if tensor is not None
    }
    others = {
        "attention.output.dense": (weights.out, weights.out_bias),
        "attention.output.LayerNorm": (weights.attention_norm, weights.attention_norm_bias),
        "intermediate.dense": (weights.up, weights.up_bias),
        "output.dense": (weights.down, weights.down_bias),
        "output.LayerNorm": (weights.ffn_norm, weights.ffn_norm_bias),
    }
    return qkv | {
        f"{name}.{kind}": tensor
        for name, pair in others.items()
        for kind, tensor in zip(("weight", "bias"), pair, strict=True)
        if tensor is not None
    }
