"""Answers to several prompts at once are those that each prompt gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipattn import ArgumentError, Stream
from hipattn.models.batch import BatchGeneration
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.llama import Llama
from hipattn.runtime import bindings
from hipattn.runtime.replay import Replay
from tests.models.test_llama import IDS, path, reference

__all__ = ["path"]

PROMPTS = [IDS[:3], IDS, IDS[4:5], IDS[2:7], [100], IDS[::-1]]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_greedy(stream: Stream, path: Path, batch: int, page_size: int) -> None:
    alone = [reference(path).generate(prompt, 5) for prompt in PROMPTS]
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:
        answers = model.generate_batch(PROMPTS, max_tokens=5, batch=batch, page_size=page_size)
        assert answers.texts() == [model.tokenizer.decode(tokens) for tokens in alone]
    assert answers.tokens == alone
    assert answers.ended == ["length"] * len(PROMPTS)


def test_a_cache_of_eight_bits(stream: Stream, path: Path) -> None:
    """What is first said sees no cache yet; all is the same as alone."""
    options: dict[str, Any] = {"max_tokens": 5, "page_size": 4, "cache_dtype": "float8_e4m3"}
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:
        answers = model.generate_batch(PROMPTS, batch=3, **options)
        answers.texts()
        alone = [model.generate_batch([prompt], **options) for prompt in PROMPTS]
        for each in alone:
            each.texts()
    assert answers.tokens == [each.tokens[0] for each in alone]
    assert [tokens[0] for tokens in answers.tokens] == [reference(path).generate(prompt, 1)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}])
def test_graphs_change_nothing(
    stream: Stream, path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:

        def tokens() -> tuple[list[list[int]], int]:
            with bindings.record() as calls:
                answers = model.generate_batch(PROMPTS, max_tokens=7, batch=2, page_size=2, **options)
                answers.texts()
            return answers.tokens, [name for name, _ in calls].count("hipGraphLaunch")

        replayed, graphs = tokens()
        assert graphs
        monkeypatch.setattr(Replay, "run", lambda self, key, work: work() or True)
        assert tokens() == (replayed, 0)


def test_what_joins_is_in_the_graph_of_what_left(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model, bindings.record() as calls:
        model.generate_batch([IDS[:3]] * 6, max_tokens=4, batch=2).texts()
    names = [name for name, _ in calls]
    # Three pairs, three steps each, of which the first pair's first is called and its second captured.
    assert (names.count("hipGraphLaunch"), names.count("hipGraphInstantiateWithFlags")) == (8, 1)


def test_answers_that_end_leave_their_place(stream: Stream, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined, join = [], BatchGeneration._join

    def recorded(self: BatchGeneration, answer: Any, *others: Any) -> int:
        joined.append((answer.number, self.ended[0]))
        return join(self, answer, *others)

    monkeypatch.setattr(BatchGeneration, "_join", recorded)
    alone = [reference(path).generate(prompt, 7) for prompt in PROMPTS]
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:
        model.tokenizer.stops = frozenset({alone[1][1]})
        answers = model.generate_batch(PROMPTS, max_tokens=7, batch=2)
        answers.texts()
    assert (2, None) in joined  # the third, in place of the second, before the first had ended
    for tokens, ended, expected in zip(answers.tokens, answers.ended, alone, strict=True):
        cut = next((i for i, token in enumerate(expected) if token in model.tokenizer.stops), None)
        assert (tokens, ended) == ((expected, "length") if cut is None else (expected[:cut], "stop"))


@pytest.mark.parametrize("pages", [4, 5, 9])
def test_where_pages_run_out_sequences_leave_and_return(stream: Stream, path: Path, pages: int) -> None:
    prompts = [ids[:4] for ids in PROMPTS]
    alone = [reference(path).generate(prompt, 10) for prompt in prompts]
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:
        answers = model.generate_batch(prompts, max_tokens=10, batch=4, page_size=4, pages=pages)
        answers.texts()
    assert answers.tokens == alone


def test_draws_depend_on_the_prompt_alone(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), dtype=np.float32, stream=stream) as model:

        def tokens(**options: Any) -> list[list[int]]:
            answers = model.generate_batch(PROMPTS, max_tokens=6, temperature=1.0, **options)
            answers.texts()
            return answers.tokens

        drawn = tokens(seed=1, batch=6)
        assert tokens(seed=1, batch=2, page_size=4, pages=5) == drawn
        assert tokens(seed=2, batch=6) != drawn
        first = model.generate(PROMPTS[0], max_tokens=6, temperature=1.0, seed=1)
        first.text()
        assert first.tokens == drawn[0]


def test_the_context_ends_an_answer(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), stream=stream) as model:
        answers = model.generate_batch([IDS, IDS[:2]], max_tokens=100)
        answers.texts()
        assert answers.ended == ["context", "context"]
        assert [len(tokens) for tokens in answers.tokens] == [17 - len(IDS), 17 - 2]


def test_bad_arguments(stream: Stream, path: Path) -> None:
    with Llama(GGUFFile(path), stream=stream) as model:
        for prompts, options, message in (
            ([], {}, "prompts is empty"),
            ([IDS, [-1]], {}, "tokens has -1 to -1"),
            ([IDS], {"batch": 0}, "batch is 0; it takes an integer of 1 or more"),
            ([IDS], {"page_size": 0}, "page_size is 0"),
            ([IDS], {"cache_dtype": "float8"}, "cache_dtype is 'float8'; accepted: 'float8_e4m3'"),
            ("hello", {}, "prompts is 'hello'; it takes a list of prompts"),
            ([IDS], {"max_tokens": 0}, "max_tokens is 0"),
            ([IDS, IDS[:1]], {"max_tokens": 4, "page_size": 4, "pages": 2}, "pages is 2; the longest prompt .* take 3"),
        ):
            with pytest.raises(ArgumentError, match=message):
                model.generate_batch(prompts, **options)
