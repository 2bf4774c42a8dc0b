"""The checks of ``verify.py --models``: pretrained models on the device beside NumPy."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
from verify_checks import Errors, Evidence, Gpu, check, counted

from hipattn.models import minilm, smollm2
from hipattn.models.bert import Bert
from hipattn.models.bert_file import BertHyperparameters, BertTokenizer, BertWeights
from hipattn.models.bert_reference import BertReference
from hipattn.models.fetch import fetch
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.llama import Llama
from hipattn.models.llama_reference import LlamaReference
from hipattn.models.safetensors_file import SafetensorsFile
from hipattn.models.tokenizer import Tokenizer
from hipattn.models.weights import LlamaWeights
from hipattn.runtime import bindings
from hipattn.tensor import BFLOAT16, FLOAT16, FLOAT32, DeviceTensor

__all__ = ["MODELS"]

MODELS = "Models"

# Jane Austen, Pride and Prejudice, 1813.
TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be
in want of a wife. However little known the feelings or views of such a man may be on his first entering a
neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is considered the
rightful property of some one or other of their daughters. "My dear Mr. Bennet," said his lady to him one day, "have
you heard that Netherfield Park is let at last?" Mr. Bennet replied that he had not. "But it is," returned she; "for
Mrs. Long has just been here, and she told me all about it." Mr. Bennet made no answer. "Do you not want to know who has
taken it?" cried his wife impatiently. "You want to tell me, and I have no objection to hearing it." This was
invitation enough. "Why, my dear, you must know, Mrs. Long says that Netherfield is taken by a young man of large
fortune from the north of England." """.replace("\n", " ")
TOKENS = 200


@cache
def llama_file() -> GGUFFile:
    """Return SmolLM2's file."""
    return GGUFFile(fetch(smollm2.FILE))


@cache
def prompt() -> list[int]:
    """Return the text's first tokens."""
    return Tokenizer(llama_file()).encode(TEXT)[:TOKENS]


@cache
def expected_logits() -> Any:
    """Return the logits after each token of the prompt, in float64."""
    weights = LlamaWeights(llama_file())
    return LlamaReference(weights.hyperparameters, weights.load()).forward(prompt())


@check(MODELS, "SmolLM2: logits")
def _(gpu: Gpu) -> Evidence:
    """Each layer rounds some ten times, and a rounding's effect grows little over 30 layers: hence the bounds."""
    errors = Errors()
    for dtype, bound in ((FLOAT32, 1e-5), (FLOAT16, 2.0**-6), (BFLOAT16, 2.0**-3)):
        with Llama(llama_file(), dtype=dtype, stream=gpu.stream) as model:
            errors.add(dtype.name, model.logits(prompt()), expected_logits(), bound)
    return errors.evidence(f"{len(prompt())} tokens: ")


@check(MODELS, "SmolLM2: greedy continuation")
def _(gpu: Gpu) -> str:
    weights, count = LlamaWeights(llama_file()), 64
    with Llama(llama_file(), dtype=FLOAT32, stream=gpu.stream) as model:
        question = model.encode("Why is the sky blue?")
        answer = model.generate(question, max_tokens=count)
        text = answer.text()
    expected = LlamaReference(weights.hyperparameters, weights.load(), np.float32).generate(question, count)
    same = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(answer.tokens, expected, strict=False))
    )
    assert answer.tokens == expected, f"the first {same} of {count} tokens are NumPy's"
    rate = "" if gpu.device.simulated else f", {answer.tokens_per_second:.0f} tokens/s"
    return f"{same} of {count} tokens are NumPy's{rate}: {text[:40]!r} ..."


@check(MODELS, "SmolLM2: tokens one by one")
def _(gpu: Gpu) -> Evidence:
    errors, last = Errors(), 8
    with Llama(llama_file(), dtype=FLOAT32, stream=gpu.stream) as model:
        with model.session(capacity=len(prompt())) as session:
            logits = [session.prefill([prompt()[:-last]]).numpy()]
            for token in prompt()[-last:]:
                ids = DeviceTensor.from_numpy(np.array([token], np.int32), stream=gpu.stream)
                logits.append(session.step(ids).numpy())
        errors.add("float32", np.concatenate(logits), model.logits(prompt())[-last - 1 :], 1e-5)
    return errors.evidence(f"{len(prompt()) - last} tokens at once, then {last} single ones, beside one pass: ")


@check(MODELS, "SmolLM2: one upload, one download a token")
def _(gpu: Gpu) -> str:
    count = 8
    with Llama(llama_file(), method="flash", stream=gpu.stream) as model:
        model.generate(prompt()[:32], max_tokens=2).text()  # what is compiled, is
        with bindings.record() as calls:
            answer = model.generate(prompt()[:32], max_tokens=count)
            answer.text()
    copies = [arguments[3].name.removeprefix("hipMemcpy") for name, arguments in calls if name.startswith("hipMemcpy")]
    made = len(answer.tokens)
    assert copies == ["HostToDevice"] + ["DeviceToHost"] * made, f"{made} tokens took the copies {copies}"
    names = [name for name, _ in calls]
    begin = names.index("hipModuleLaunchKernel")
    allocated = counted(calls[begin:], "hipMalloc")
    assert not allocated, f"{allocated} allocations after the first launch"
    return f"{made} tokens: 1 upload, {made} downloads, 0 allocations after the first launch, {len(names)} calls in all"


# Paraphrases, two by two.
SENTENCES = (
    *("A man is eating pasta.", "Someone is having a plate of noodles."),
    *("The stock market fell sharply today.", "Shares dropped a lot this afternoon."),
    *("How do I reset my password?", "I forgot my login and need a new one, and nobody answers my mails."),
)


@check(MODELS, "MiniLM: sentence embeddings")
def _(gpu: Gpu) -> Evidence:
    """Bounds as of SmolLM2's logits, halved: there are fewer layers."""
    folder, errors = fetch(minilm.FILE).parent, Errors()
    sizes = BertHyperparameters.read(folder / "config.json")
    tokenizer = BertTokenizer(folder / "tokenizer.json", sizes)
    weights = BertWeights(SafetensorsFile(folder / "model.safetensors"), sizes)
    reference = BertReference(sizes, weights.load())
    expected = np.array([reference.embed(tokenizer.encode(text)) for text in SENTENCES])
    for dtype, bound in ((FLOAT32, 5e-6), (FLOAT16, 2.0**-7), (BFLOAT16, 2.0**-4)):
        with Bert(folder, dtype=dtype, stream=gpu.stream) as model:
            found = model.embed(SENTENCES)
        errors.add(dtype.name, found, expected, bound)
        likeness = found[::2] @ found[1::2].T
        assert (likeness.argmax(axis=1) == np.arange(3)).all(), f"{dtype.name}: paraphrases are not closest"
    return errors.evidence(f"{len(SENTENCES)} sentences of different lengths in one batch: ")
