"""A llama on the device against the NumPy one."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hipattn
from hipattn import ArgumentError, CacheFullError, ClosedError, DeviceTensor, HipError, Stream
from hipattn.errors import ModelError
from hipattn.kernels import sample
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.llama import Llama
from hipattn.models.llama_reference import LlamaReference
from hipattn.models.session import Session
from hipattn.models.tokenizer import Tokenizer
from hipattn.models.weights import LlamaWeights
from hipattn.runtime import bindings
from hipattn.runtime.replay import Replay
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import DTYPES, EPSILON, magnitude
from tests.models.conftest import TENSORS, VOCABULARY

IDS = [7, 250, 7, 0, 31, 100, 262, 42, 9]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def path(make_gguf: Any) -> Path:
    """A model of two layers."""
    second = {name.replace("blk.0", "blk.1"): value[::-1] for name, value in TENSORS.items() if "blk" in name}
    changes = {"llama.block_count": 2, "tokenizer.chat_template": TEMPLATE}
    return make_gguf(changes, tensors={name: value / 4 for name, value in (TENSORS | second).items()})


def reference(path: Path, dtype: Any = np.float64, rounded: Any = np.float32) -> LlamaReference:
    weights = LlamaWeights(GGUFFile(path))
    return LlamaReference(weights.hyperparameters, weights.load(rounded), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["flash", "staged"])
def test_logits(stream: Stream, path: Path, dtype: np.dtype[Any], method: str) -> None:
    expected = reference(path, rounded=dtype).forward(IDS)
    with Llama(GGUFFile(path), dtype=dtype, method=method, stream=stream) as model:
        found = model.logits(IDS)
    assert (found.dtype, found.shape) == (np.float32, (len(IDS), len(VOCABULARY)))
    assert_close(found, expected, atol=8 * EPSILON[dtype] * magnitude(expected))  # about twenty roundings


def test_tied_or_not(stream: Stream, make_gguf: Any) -> None:
    output = np.random.default_rng(3).standard_normal((len(VOCABULARY), 32)).astype(np.float32)
    path = make_gguf(tensors=TENSORS | {"output.weight": output})
    expected = reference(path).forward(IDS)
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:
        assert model.output is not model.embedding
        assert_close(model.logits(IDS), expected, atol=1e-5 * magnitude(expected))


@pytest.mark.parametrize("tokens", [2, 3, 512])
def test_token_by_token_is_as_one_pass(stream: Stream, path: Path, tokens: int) -> None:
    expected = reference(path).forward(IDS)
    model = Llama(GGUFFile(path), dtype=np.float32, stream=stream)
    with model, model.session(capacity=12, tokens=tokens) as session:
        for first in (1, 5):
            assert_close(session.prefill([IDS[:first]]).numpy()[0], expected[first - 1], atol=1e-4)
            for position in range(first, len(IDS)):
                ids = DeviceTensor.from_numpy(np.array([IDS[position]], np.int32), stream=stream)
                assert_close(session.step(ids).numpy()[0], expected[position], atol=1e-4)
            assert session.length == len(IDS)


def test_prompts_of_different_lengths(stream: Stream, path: Path) -> None:
    prompts = [IDS[:3], IDS, IDS[4:5]]
    alone = [reference(path).generate(prompt, 5) for prompt in prompts]
    with (
        Llama(GGUFFile(path), method="flash", dtype=np.float32, stream=stream) as model,
        model.session(batch=3, capacity=16) as session,
    ):
        with bindings.record() as calls:
            session.prefill(prompts)
        assert _copies(calls) == {"hipMemcpyHostToDevice": 1}
        together = []
        for _ in range(5):
            together.append(session.choose().numpy())
            session.step()
    assert np.array(together).T.tolist() == alone


def test_one_upload_and_a_download_a_token(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), method="flash", stream=stream) as model:
        model.generate(IDS[:4], max_tokens=2).text()  # compiles
        with bindings.record() as calls:
            answer = model.generate(IDS[:4], max_tokens=9)
            answer.text()
    assert len(answer.tokens) == 9
    assert _copies(calls) == {"hipMemcpyHostToDevice": 1, "hipMemcpyDeviceToHost": 9}
    # The session's memory and the prompt; nothing for each token.
    names = [name for name, _ in calls]
    last_allocation = max(i for i, name in enumerate(names) if name.startswith("hipMalloc"))
    assert names[:last_allocation].count("hipModuleLaunchKernel") == 0


def _copies(calls: list[tuple[str, tuple[Any, ...]]]) -> dict[str, int]:
    kinds = [arguments[3].name for name, arguments in calls if name.startswith("hipMemcpy")]
    return dict(Counter(kinds))


def test_a_step_is_one_graph(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), method="flash", stream=stream) as model, model.session(capacity=12) as session:
        session.prefill([IDS[:4]])
        for _ in range(3):
            session.choose()
            session.step()
        with bindings.record() as calls:
            session.step(session.choose())
            session.ids.numpy()
    names = [name for name, _ in calls if "Graph" in name or "Launch" in name or "Mem" in name or "Blas" in name]
    assert names == ["hipModuleLaunchKernel", "hipMemsetD32Async", "hipGraphLaunch", "hipMemcpyAsync"]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 2.0, "top_k": 9}])
def test_graphs_change_nothing(
    stream: Stream, path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Llama(GGUFFile(path), dtype=np.float32, method="flash", stream=stream) as model:

        def tokens() -> tuple[list[int], int]:
            with bindings.record() as calls:
                answer = model.generate(IDS[:3], max_tokens=12, **options)
                answer.text()
            return answer.tokens, [name for name, _ in calls].count("hipGraphLaunch")

        replayed, graphs = tokens()
        assert graphs == 10  # of 11 steps, the first is called
        monkeypatch.setattr(Replay, "run", lambda self, key, work: work() or True)
        assert tokens() == (replayed, 0)
        if not options:
            assert replayed == reference(path).generate(IDS[:3], 12)


def test_ids_of_ones_own(stream: Stream, path: Path) -> None:
    """They may lie elsewhere in each step, and be of another stream."""
    expected = reference(path).forward(IDS)
    rows = np.array([IDS, IDS], np.int32).T
    with (
        Llama(GGUFFile(path), dtype=np.float32, method="flash", stream=stream) as model,
        model.session(batch=2, capacity=len(IDS)) as session,
    ):
        ids = DeviceTensor.from_numpy(rows, stream=stream.device.default_stream)
        for _ in range(3):
            session.prefill([IDS[:2], IDS[:2]])
            for at in range(2, len(IDS)):
                assert_close(session.step(ids[at]).numpy(), np.stack([expected[at]] * 2), atol=1e-4)


def test_a_replayed_step_checks_what_a_called_one_does(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), dtype=np.float32, method="flash", stream=stream) as model:
        session = model.session(batch=2, capacity=len(IDS))
        session.prefill([IDS[:2], IDS[:2]])
        ids = DeviceTensor.from_numpy(np.array(IDS[2:6], np.int32), stream=stream)
        for _ in range(3):
            session.step(ids[:2])
        for wrong in (ids[::2], DeviceTensor.from_numpy(np.ones(2, np.float32), stream=stream)):
            with pytest.raises(ArgumentError, match=r"ids is .* it takes int32 "):
                session.step(wrong)
        model.close()
        with pytest.raises(ClosedError):
            session.step(ids[:2])
        for call in (model.session, lambda: model.generate(IDS), lambda: model.generate_batch([IDS])):
            with pytest.raises(ClosedError, match="the model is closed"):
                call()
        stream.sync()  # no kernel met memory that was freed
        session.close()


def test_threads_side_by_side(stream: Stream, path: Path) -> None:
    prompts = [IDS[:3], IDS[2:5], IDS[4:6]]
    alone = [reference(path).generate(prompt, 12) for prompt in prompts]
    with Llama(GGUFFile(path), dtype=np.float32, method="flash", stream=stream) as model:
        answers = [model.generate(prompt, max_tokens=12) for prompt in prompts]
        threads = [threading.Thread(target=answer.text) for answer in answers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answer.tokens for answer in answers] == alone


def test_answers_in_turns(stream: Stream, path: Path) -> None:
    """In one thread, with one hipBLAS handle: each goes on where it was."""
    prompts = [IDS[:3], IDS[2:5]]
    alone = [reference(path).generate(prompt, 10) for prompt in prompts]
    with Llama(GGUFFile(path), dtype=np.float32, method="flash", stream=stream) as model:
        answers = [model.generate(prompt, max_tokens=10) for prompt in prompts]
        for _ in zip_longest(*answers):
            pass
    assert [answer.tokens for answer in answers] == alone


def test_a_stream_of_its_own(path: Path) -> None:
    model = Llama(GGUFFile(path))
    with model:
        assert model.stream.handle != 0
        assert len(model.generate(IDS[:3], max_tokens=3).text())
    assert model.stream.closed


def test_greedy(stream: Stream, path: Path) -> None:
    expected = reference(path).generate(IDS[:4], 12)
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:
        answer = model.generate(IDS[:4], max_tokens=12)
        assert "".join(answer) == model.tokenizer.decode(expected)
    assert answer.tokens == expected
    assert (answer.prompt, answer.ended) == (IDS[:4], "length")
    assert 0 < answer.first_token_seconds <= answer.seconds
    assert answer.tokens_per_second > 0


def test_an_answer_ends_where_the_model_or_its_context_ends_it(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), stream=stream) as model:
        answer = model.generate(IDS, max_tokens=100)
        answer.text()
        assert answer.ended == "context"
        assert len(IDS) + len(answer.tokens) == model.hyperparameters.context + 1  # the last is chosen, not seen
        whole = answer.tokens
        model.tokenizer.stops = frozenset({whole[3]})
        answer = model.generate(IDS, max_tokens=100)
        answer.text()
        assert (answer.ended, answer.tokens) == ("stop", whole[: whole.index(whole[3])])


def test_seeds(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), stream=stream) as model:

        def tokens(**options: Any) -> list[int]:
            answer = model.generate(IDS[:2], max_tokens=10, **options)
            answer.text()
            return answer.tokens

        drawn = [tokens(temperature=1.0, seed=seed) for seed in (1, 2, 1)]
        assert drawn[0] == drawn[2] != drawn[1]
        with model.session(capacity=9) as session:  # a draw depends on the position
            session.prefill([IDS[:2]])
            ids = DeviceTensor.empty((1,), np.int32, stream=stream)
            for _ in range(6):
                chosen = session.choose(temperature=1.0, seed=1).numpy()
                sample.launch(session.logits, ids, temperature=1.0, seed=1, step=session.length, stream=stream)
                assert ids.numpy() == chosen
                session.step()


def test_an_answer_that_is_left_frees_its_memory(stream: Stream, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def session(model: Llama, **options: Any) -> Session:
        made.append(Session(model, 1, **options))
        return made[-1]

    monkeypatch.setattr(Llama, "session", session)
    with Llama(GGUFFile(path), stream=stream) as model:
        pieces = iter(model.generate(IDS[:4], max_tokens=5, temperature=1.0))
        next(pieces)
        assert made[0].plan.cache.capacity == 4 + 5 - 1  # the last token is chosen, not seen
        assert not made[0].plan.cache.closed
        pieces.close()
        assert made[0].plan.cache.closed
        assert made[0].logits.buffer.closed


def test_chat(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), stream=stream) as model:
        message = {"role": "user", "content": "the"}
        assert model.encode("the") == model.encode([message]) == model.tokenizer.encode("<|im_start|>the<|im_end|>")
        assert model.generate("the", max_tokens=1).prompt == model.encode("the")


def test_bad_prompts(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), stream=stream) as model:
        for prompt, message in (
            ("", "prompt is ''; it takes a text"),
            (" \n", "prompt is .*; it takes a text"),
            ("the \ud800", "it takes a text that can be written in UTF-8"),
            (None, "messages is None; it takes a sequence of one or more"),
            (7, "messages is 7; it takes a sequence of one or more"),
            ({"role": "user", "content": "the"}, "messages is {.*}; it takes a sequence of one or more"),
            ([[1], [2, 3]], r"tokens is \[\[1\], \[2, 3\]\]; it takes one or more integers"),
            (["the"], r"tokens is <U3 \(1,\); it takes one or more integers"),
            ([], r"messages is \[\]; it takes a sequence of one or more"),
            ([1, len(VOCABULARY)], f"tokens has 1 to {len(VOCABULARY)}; the vocabulary's are 0 to"),
            ([-1], "tokens has -1 to -1"),
            ([[1, 2]], r"tokens is int64 \(1, 2\); it takes one or more integers"),
            ([0.5], "tokens is float64"),
            ([1] * 17, "the prompt has 17 tokens; the model's context is 16"),
            ("e" * 17, "the prompt has 19 tokens; the model's context is 16"),
        ):
            with pytest.raises(ArgumentError, match=message):
                model.generate(prompt)
        for options, message in (
            ({"max_tokens": 0}, "max_tokens is 0; it takes an integer of 1 or more"),
            ({"temperature": -1.0}, "temperature is -1.0"),
            ({"top_p": 0.0}, r"top_p is 0\.0"),
            ({"top_k": -1}, "top_k is -1; it takes an integer of 0 or more"),
            ({"seed": 2**63}, "seed is 9223372036854775808; it takes at most"),
        ):
            with pytest.raises(ArgumentError, match=message):
                model.generate(IDS, **options)
        with pytest.raises(ArgumentError, match="capacity is 17; the model's context is 16"):
            model.session(capacity=17)
        with model.session(batch=2, capacity=9) as session:
            with pytest.raises(ArgumentError, match="prompts has 1 sequences; the session is for 2"):
                session.prefill([IDS])
            session.prefill([IDS, IDS])
            session.choose()
            with pytest.raises(CacheFullError, match="the cache holds 9 of 9 tokens; 1 more do not fit"):
                session.step()
            with pytest.raises(ArgumentError, match=r"ids is int32 \(1,\), .* it takes int32 \(2,\), "):
                session.step(session.ids[:1])
            with pytest.raises(ArgumentError, match="ids is list; it takes a DeviceTensor"):
                session.step([1, 2])
            with pytest.raises(ArgumentError, match="tokens is one sequence; the session is for 2"):
                session.logits_of(IDS)
            assert session.length == 9


def test_what_does_not_fit_a_session_leaves_it_as_it_was(stream: Stream, path: Path) -> None:
    expected = reference(path).forward(IDS)
    with (
        Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model,
        model.session(capacity=8, tokens=4) as session,
    ):
        session.prefill([IDS[:5]])
        with bindings.record() as calls:
            for tokens, message in (
                (IDS, "the prompt has 9 tokens; the session's capacity is 8"),
                ([], "tokens is empty; it takes one or more integers"),
                ([len(VOCABULARY)], "the vocabulary's are 0 to"),
            ):
                with pytest.raises(ArgumentError, match=message):
                    session.prefill([tokens])
                with pytest.raises(ArgumentError, match=message):
                    session.logits_of(tokens)
        assert not calls
        assert session.length == 5
        ids = DeviceTensor.from_numpy(np.array(IDS[5:6], np.int32), stream=stream)
        assert_close(session.step(ids).numpy()[0], expected[5], atol=1e-4)


def test_a_session_is_begun_by_a_prompt(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model, model.session(capacity=12) as session:

        def empty() -> None:
            assert session.length == 0
            for act in (session.choose, session.step, lambda: session.step(session.ids)):
                with pytest.raises(ArgumentError, match=r"the session is empty; prefill\(\) comes first"):
                    act()

        empty()
        session.prefill([IDS])
        with pytest.raises(ArgumentError, match=r"nothing was chosen; choose\(\) comes first"):
            session.step()
        session.choose()
        session.step()
        session.logits_of(IDS)
        empty()


@pytest.mark.parametrize("method", ["flash", "staged"])
def test_a_call_that_fails_halfway_is_undone(stream: Stream, path: Path, fail: Any, method: str) -> None:
    expected = reference(path).forward(IDS)
    ids = DeviceTensor.from_numpy(np.array(IDS[5:6], np.int32), stream=stream)
    model = Llama(GGUFFile(path), dtype=np.float32, method=method, stream=stream)
    with model, model.session(tokens=3) as session:
        session.prefill([IDS[:5]])
        with bindings.record() as calls:
            session.step(ids)
        products = [name for name, _ in calls].count("hipblasGemmStridedBatchedEx")
        for nth in (1, products - 1, products):  # the last gives the logits
            session.prefill([IDS[:5]])
            with fail(f"hipblasGemmStridedBatchedEx:{nth}"), pytest.raises(HipError):
                session.step(ids)
            assert session.length == 5
            assert_close(session.step(ids).numpy()[0], expected[5], atol=1e-4)
        for act in (lambda: session.prefill([IDS]), lambda: session.logits_of(IDS)):
            with fail(f"hipblasGemmStridedBatchedEx:{products + 1}"), pytest.raises(HipError):
                act()  # in the second part
            assert session.length == 0


def test_numbers_that_the_dtype_cannot_hold(stream: Stream, make_gguf: Any) -> None:
    large = {name: value * 3000 if "norm" in name else value for name, value in TENSORS.items()}
    path = make_gguf(tensors=large)
    with Llama(GGUFFile(path), dtype=np.float16, stream=stream) as model:
        answer = model.generate(IDS)
        with pytest.raises(ModelError, match=r"the logits hold NaN: .* too large for float16"):
            answer.text()
        assert answer.tokens == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "fast"}, "method is 'fast'; accepted: auto, flash, staged"), ({"dtype": "int8"}, "dtype is int8")],
)
def test_bad_options(stream: Stream, path: Path, options: dict[str, str], message: str) -> None:
    file = GGUFFile(path)
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        Llama(file, stream=stream, **options)
    assert not calls
    with pytest.raises(ArgumentError, match="file is str; it takes a GGUFFile"):
        Llama(str(path), stream=stream)  # type: ignore[arg-type]


def test_files_that_are_refused_leave_nothing(stream: Stream, make_gguf: Any) -> None:
    wrong = {"blk.0.attn_k.weight": np.zeros((8, 32), np.float32)}
    with pytest.raises(ModelError, match=r"attn_k\.weight has shape \(8, 32\), expected \(16, 32\)"):
        Llama(GGUFFile(make_gguf(tensors=TENSORS | wrong)), stream=stream)
    nan = {"blk.0.ffn_down.weight": np.full((32, 64), np.nan, np.float32)}
    with pytest.raises(ModelError, match=r"ffn_down\.weight holds NaN or infinity"):
        Llama(GGUFFile(make_gguf(tensors=TENSORS | nan)), stream=stream)


def test_no_memory_leaves_nothing(stream: Stream, path: Path, fail: Any) -> None:
    call = "hipMallocAsync" if stream.device.memory_pools else "hipMalloc"
    file = GGUFFile(path)
    for nth in (1, 2, 3, 8, 9, 14):
        with fail(f"{call}:{nth}"), pytest.raises(HipError):
            Llama(file, stream=stream)
    with Llama(file, stream=stream) as model:
        for nth in range(1, 11):
            with fail(f"{call}:{nth}"), pytest.raises(HipError):
                model.session()


@pytest.mark.parametrize("name", ["path", "str"])
def test_load_by_path(path: Path, name: str) -> None:
    with hipattn.models.load(str(path) if name == "str" else path, dtype="float16", method="flash") as model:
        assert (model.dtype, model.method) == (np.float16, "flash")


def test_a_name_is_no_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hipattn.models.smollm2.fetch", lambda file: path)
    (tmp_path / "here" / "smollm2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with hipattn.models.load("smollm2") as model:
        assert type(model) is Llama


# Jane Austen, Pride and Prejudice, 1813: about two hundred tokens.
TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of
a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this
truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of one or
other of their daughters. "My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is
let at last?" Mr. Bennet replied that he had not. "But it is," returned she; "for Mrs. Long has just been here, and she
told me all about it." Mr. Bennet made no answer. "Do you not want to know who has taken it?" cried his wife
impatiently. "You want to tell me, and I have no objection to hearing it." This was invitation enough. "Why, my dear,
you must know, Mrs. Long says that Netherfield is taken by a young man of large fortune from the north of England."
""".replace("\n", " ")


@pytest.mark.model
def test_the_real_model(stream: Stream, real_file: GGUFFile) -> None:
    weights = LlamaWeights(real_file)
    numpy = LlamaReference(weights.hyperparameters, weights.load())
    ids = Tokenizer(real_file).encode(TEXT)[:200]
    assert len(ids) == 200
    expected = numpy.forward(ids)
    with Llama(real_file, dtype=np.float32, stream=stream) as model:
        error = np.abs(model.logits(ids) - expected).max() / magnitude(expected)
        assert error < 1e-5, error
        prompt = model.encode("Why is the sky blue?")
        answer = model.generate(prompt, max_tokens=64)
        answer.text()
    weights = LlamaWeights(real_file)
    assert answer.tokens == LlamaReference(weights.hyperparameters, weights.load(), np.float32).generate(prompt, 64)


def test_load_of_what_is_nowhere() -> None:
    with pytest.raises(
        ModelError, match="'gpt2' is no file, no folder and no model's name; the names are smollm2, minilm"
    ):
        hipattn.models.load("gpt2")
