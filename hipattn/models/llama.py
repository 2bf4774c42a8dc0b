"""Models of the llama architecture on a device: weights, tokenizer and chat template from a GGUF file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hipattn.arguments import instance, integer
from hipattn.errors import ArgumentError, ClosedError
from hipattn.layers import LayerSpec, LayerWeights, Rope
from hipattn.models.batch import BatchGeneration
from hipattn.models.chat import Chat, Message
from hipattn.models.generation import Generation
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.head import Sampling
from hipattn.models.session import Session
from hipattn.models.tokenizer import Tokenizer
from hipattn.models.upload import upload
from hipattn.models.weights import EMBEDDING, NORM, OUTPUT, LlamaWeights
from hipattn.plan import check_method
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT16, FLOAT32, DeviceTensor, as_dtype

__all__ = ["Llama"]


class Llama:
    """A model on a device. Threads may generate side by side: each answer has memory of its own.

    Parameters
    ----------
    file
        The GGUF. All of it is checked before anything is allocated.
    dtype
        Of weights, activations and KV cache. Default: float16; float32 on a simulated GPU, where products of 16 bits
        are computed in 32.
    method
        How attention is computed: see `ExecutionPlan`.
    stream
        Where weights are brought to the device, and where sessions work. Default: one of the model's own, on device 0.
        Answers are generated in streams of their own.

    Attributes
    ----------
    hyperparameters : Hyperparameters
        The sizes.
    tokenizer : Tokenizer
    spec : LayerSpec
        What a layer computes.
    layers : list of LayerWeights
    embedding, norm, output : DeviceTensor
        [vocabulary, hidden], [hidden] and [vocabulary, hidden]; the last may be the first.
    dtype : numpy.dtype
    method : str
    stream : Stream

    Raises
    ------
    ArgumentError
        `dtype`, `method` or `stream` is not accepted.
    ModelError
        The architecture, tokenizer or quantisation is not supported, or a tensor is missing or has the wrong shape.
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(
        self,
        file: GGUFFile,
        *,
        dtype: npt.DTypeLike | None = None,
        method: str = "auto",
        stream: Stream | None = None,
    ) -> None:
        self._file = instance("file", file, GGUFFile)
        self.tokenizer = Tokenizer(file)
        weights = LlamaWeights(file)
        self.hyperparameters = h = weights.hyperparameters
        device = Device(0) if stream is None else instance("stream", stream, Stream).device
        default = FLOAT32 if device.simulated else FLOAT16
        self.dtype, self.method = default if dtype is None else as_dtype(dtype), check_method(method)
        self.spec = LayerSpec(
            hidden=h.hidden,
            heads=h.heads,
            heads_kv=h.kv_heads,
            head_dim=h.head_dim,
            ffn=h.ffn,
            norm="rms",
            norm_eps=h.norm_eps,
            norm_first=True,
            activation="silu",
            gated=True,
            bias=False,
            rope=Rope("interleaved", h.rope_base),
            causal=True,
        )
        self.layers: list[LayerWeights] = []
        self._tensors: list[DeviceTensor] = []
        self._owns_stream = stream is None
        self.stream = Stream(device) if stream is None else stream
        try:
            self.embedding = self._empty(h.vocabulary, h.hidden)
            self.norm = self._empty(h.hidden)
            self.output = self.embedding if weights.tied else self._empty(h.vocabulary, h.hidden)
            into = {EMBEDDING: self.embedding, NORM: self.norm, OUTPUT: self.output}
            for layer in range(h.layers):
                self.layers.append(LayerWeights.empty(self.spec, self.dtype, stream=self.stream))
                into |= {f"blk.{layer}.{name}.weight": x for name, x in _by_name(self.spec, self.layers[-1]).items()}
            upload(weights, into, stream=self.stream)
        except BaseException:
            self.close()
            raise

    def _empty(self, *shape: int) -> DeviceTensor:
        self._tensors.append(DeviceTensor.empty(shape, self.dtype, stream=self.stream))
        return self._tensors[-1]

    @functools.cached_property
    def chat(self) -> Chat:
        """The chat template.

        Raises
        ------
        ModelError
            The GGUF has no chat template, or a damaged one.
        """
        return Chat(self._file, self.tokenizer)

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the tokens of a question to the assistant, or of a chat up to where the assistant is to speak.

        Raises
        ------
        ArgumentError
            The prompt is empty, or is no text and no messages, or the chat template refuses it.
        ModelError
            The GGUF has no chat template, or a damaged one.
        """
        if isinstance(prompt, str):
            if not prompt.strip():
                raise ArgumentError(f"prompt is {prompt!r}; it takes a text")
            prompt = [{"role": "user", "content": prompt}]
        return self.chat.encode(prompt)

    def session(
        self, batch: int = 1, *, capacity: int | None = None, tokens: int = 512, stream: Stream | None = None
    ) -> Session:
        """Return what takes a batch of sequences through the model.

        Parameters
        ----------
        batch
            How many sequences.
        capacity
            How many tokens of each. Default: the model's context.
        tokens
            How many of them at a time, at most: memory for activations grows with it.
        stream
            Where all work goes. Default: the model's. Sessions that several threads run side by side take one each,
            because steps are captured: see `Graph`.

        Raises
        ------
        ArgumentError
            `capacity` is more than the model's context.
        ClosedError
            The model is closed.
        HipError
            The device has too little memory.
        """
        self._check_open()
        capacity = self.hyperparameters.context if capacity is None else capacity
        return Session(self, batch, capacity, tokens, stream)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits after each token of a sequence, [tokens, vocabulary], in host memory.

        Raises
        ------
        ArgumentError
            There is no token, there are more than the model's context, or one is not in the vocabulary.
        HipError
            A call fails.
        """
        ids = self.check_tokens(tokens)
        with self.session(capacity=len(ids), tokens=min(len(ids), 512)) as session:
            return session.logits_of(ids).numpy()

    def generate(
        self,
        prompt: str | Sequence[Message] | Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Generation:
        """Answer a prompt.

        Parameters
        ----------
        prompt
            A question to the assistant; or a chat, as ``{"role": "user", "content": "Hello"}`` and so on; or tokens,
            which are continued as they are.
        max_tokens
            How many tokens the answer has at most. It also ends where the model ends it, and at the model's context.
        temperature, top_k, top_p, seed
            How tokens are chosen: see `hipattn.kernels.sample.launch`. `temperature` 0, the default, takes the
            likeliest.

        Returns
        -------
        Generation
            Iterate over it for pieces of text as they come, or take ``text()``.

        Raises
        ------
        ArgumentError
            The prompt is empty or longer than the model's context, or a number is out of its range.
        ModelError
            The GGUF has no chat template, or a damaged one.
        """
        max_tokens, sampling = integer("max_tokens", max_tokens, 1), Sampling(temperature, top_k, top_p, seed)
        return Generation(self, self._prompt(prompt), max_tokens, sampling)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[Message] | Sequence[int]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch: int = 8,
        page_size: int = 16,
        pages: int | None = None,
        cache_dtype: str | None = None,
    ) -> BatchGeneration:
        """Answer several prompts at once: as one answer ends, the next prompt takes its place.

        Parameters
        ----------
        prompts
            Each as `generate` takes one.
        max_tokens, temperature, top_k, top_p, seed
            As of `generate`, for each. The n-th prompt draws as sequence n.
        batch
            How many are answered at a time, at most.
        page_size, pages
            Of the `PagedKVCache` that they share. Default: as many pages as `batch` of the longest take.
        cache_dtype
            "float8_e4m3": the cache holds keys and values in 8 bits, and answers may differ. Default: the model's
            dtype.

        Returns
        -------
        BatchGeneration
            Iterate over it for (prompt's number, piece of text) as they come, or take ``texts()``.

        Raises
        ------
        ArgumentError
            A prompt is empty or longer than the model's context, a number is out of its range, or there are too few
            pages for the longest prompt and its answer.
        ModelError
            The GGUF has no chat template, or a damaged one.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        if isinstance(prompts, str):
            raise ArgumentError(f"prompts is {prompts!r}; it takes a list of prompts")
        sequences = [self._prompt(prompt) for prompt in prompts]
        if cache_dtype not in (None, "float8_e4m3"):
            raise ArgumentError(f"cache_dtype is {cache_dtype!r}; accepted: 'float8_e4m3', or None for the model's")
        dtype = cache_dtype or self.dtype
        return BatchGeneration(
            self, sequences, max_tokens, sampling, batch=batch, page_size=page_size, pages=pages, dtype=dtype
        )

    def _prompt(self, prompt: str | Sequence[Message] | Sequence[int]) -> list[int]:
        self._check_open()
        is_text = isinstance(prompt, str) or not isinstance(prompt, Sequence | np.ndarray)
        is_chat = is_text or not len(prompt) or isinstance(prompt[0], Mapping)
        return self.check_tokens(self.encode(prompt) if is_chat else prompt)  # type: ignore[arg-type]

    def check_tokens(self, tokens: Sequence[int]) -> list[int]:
        """Return a sequence's tokens.

        Raises
        ------
        ArgumentError
            There is none, there are more than the model's context, or one is not in the vocabulary.
        """
        h = self.hyperparameters
        try:
            ids = np.asarray(tokens)
        except ValueError as error:  # rows of different lengths
            raise ArgumentError(f"tokens is {tokens!r}; it takes one or more integers") from error
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            what = f"{ids.dtype} {ids.shape}" if ids.size else "empty"
            raise ArgumentError(f"tokens is {what}; it takes one or more integers")
        if ids.size > h.context:
            raise ArgumentError(f"the prompt has {ids.size} tokens; the model's context is {h.context}")
        if ids.min() < 0 or ids.max() >= h.vocabulary:
            raise ArgumentError(f"tokens has {ids.min()} to {ids.max()}; the vocabulary's are 0 to {h.vocabulary - 1}")
        return [int(token) for token in ids]

    def _check_open(self) -> None:
        if self.embedding.buffer.closed:
            raise ClosedError("the model is closed")

    def close(self) -> None:
        """Free the weights, after the work that uses them, and close the stream if it is the model's own."""
        for tensor in self._tensors:
            tensor.buffer.close()
        for weights in self.layers:
            weights.close()
        if self._owns_stream:
            self.stream.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _by_name(spec: LayerSpec, weights: LayerWeights) -> dict[str, DeviceTensor]:
    """Return where the tensors of a GGUF's layer go."""
    keys = spec.heads * spec.head_dim
    values = keys + spec.heads_kv * spec.head_dim
    return {
        "attn_norm": weights.attention_norm,
        "attn_q": weights.qkv[:keys],
        "attn_k": weights.qkv[keys:values],
        "attn_v": weights.qkv[values:],
        "attn_output": weights.out,
        "ffn_norm": weights.ffn_norm,
        "ffn_gate": weights.up[: spec.ffn],
        "ffn_up": weights.up[spec.ffn :],
        "ffn_down": weights.down,
    }
