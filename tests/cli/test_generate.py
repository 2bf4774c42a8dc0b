"""hipattn generate, with a tiny model."""

from __future__ import annotations

from typing import Any

import pytest

from hipattn.runtime import bindings
from tests.helpers.command import run

simulated = pytest.mark.skipif(not bindings.platform().simulated, reason="needs the cpu platform")


@simulated
def test_generate(make_gguf: Any) -> None:
    path = str(make_gguf({"tokenizer.chat_template": "{{ messages[0].content }}"}))
    options = "--max-tokens", "5", "--model", path, "--platform", "cpu", "--dtype", "float16"
    done = run("generate", "the", *options, HIPATTN_PLATFORM="amd", HIPATTN_FALLBACK="error")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 1
    assert "2 tokens in, 5 out, " in done.stderr
    assert "tokens/s, Simulated gfx942 (CPU) (--max-tokens ended it)" in done.stderr
    assert run("generate", "the", *options, HIPATTN_CPU_ARCH="gfx1100").stdout == done.stdout
    drawn = [run("generate", "the", *options, "--temperature", "1", "--seed", seed).stdout for seed in "121"]
    assert drawn[0] == drawn[2] != drawn[1]


@simulated
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((" ",), "prompt is ' '; it takes a text"),
        (("e" * 99,), "the prompt has 99 tokens; the model's context is 16"),
        (("the", "--temperature", "-1"), "temperature is -1.0"),
        (("the", "--top-p", "2"), "top_p is 2.0; it takes a number above 0, at most 1"),
        (("the \udcff",), "it takes a text that can be written in UTF-8"),
        (("the", "--model", "nowhere.gguf"), "--model is nowhere.gguf; there is no such file, and smollm2 is the only"),
        (("the", "--model", "minilm"), "--model is minilm; there is no such file, and smollm2 is the only name"),
        (("the", "--model", __file__), "is not a GGUF file"),
    ],
)
def test_generate_refuses(make_gguf: Any, arguments: tuple[str, ...], message: str) -> None:
    path = str(make_gguf({"tokenizer.chat_template": "{{ messages[0].content }}"}))
    done = run("generate", "--model", path, *arguments, HIPATTN_PLATFORM="cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr.splitlines()[-1]
