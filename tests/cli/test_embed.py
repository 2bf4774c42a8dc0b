"""``hipattn embed`` with a tiny model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from hipattn.cli import main
from hipattn.models.bert import Bert
from hipattn.runtime import bindings
from tests.helpers import tiny_bert
from tests.helpers.command import run

TEXT = "the cat sat.\n\n  sat sat\r\n \t\nthe cat sat\nsat [red]sat[/red]\n"
LINES = ["the cat sat.", "sat sat", "the cat sat", "sat [red]sat[/red]"]  # 1, 3, 5 and 6


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    return str(tiny_bert.write(tmp_path / "model", positions=40))


def test_pairs_and_embeddings(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text(TEXT)
    out = tmp_path / "embeddings"
    assert main(["embed", str(tmp_path / "text"), "--model", model, "--pairs", "2", "--output", str(out)]) == 0
    with Bert(model) as bert:
        expected = bert.embed(LINES)
    np.testing.assert_allclose(np.load(out), expected, rtol=0, atol=1e-6)
    printed = capsys.readouterr()
    rows = [line for line in printed.out.splitlines() if "0." in line]
    cosines = expected @ expected.T
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    best = sorted(pairs, key=lambda pair: -cosines[pair])[:2]
    assert len(rows) == 2
    for row, (i, j) in zip(rows, best, strict=True):
        assert row.split()[0] == f"{cosines[i, j]:.3f}"
        assert LINES[i] in row
        assert LINES[j] in row
        assert str((1, 3, 5, 6)[i]) in row.split()
    assert printed.err.startswith("4 lines in ")
    assert " lines/s, " in printed.err


@pytest.mark.skipif(not bindings.platform().simulated, reason="needs the cpu platform")
def test_platform(model: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("cat\nsat\n")
    options = str(tmp_path / "text"), "--model", model, "--platform", "cpu"
    done = run("embed", *options, HIPATTN_PLATFORM="amd", HIPATTN_CPU_ARCH="gfx1100", HIPATTN_FALLBACK="error")
    assert done.returncode == 0, done.stderr
    assert " sat" in done.stdout
    assert done.stderr.startswith("2 lines in ")
    assert done.stderr.endswith(" lines/s, Simulated gfx1100 (CPU)\n")


def test_from_stdin(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"cat")))
    assert main(["embed", "-", "--model", model, "--dtype", "float16"]) == 0
    printed = capsys.readouterr()
    assert not printed.out  # one line has no pair
    assert printed.err.startswith("1 lines in ")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "cannot read {file}: No such file or directory"),
        (b"", [], "{file} has no text"),
        (b" \n\n", [], "{file} has no text"),
        (b"caf\xe9", [], "{file} is not UTF-8: byte 3 is 0xe9"),
        (b"cat\n\n" + b"the " * 39, [], "line 3 of {file} has 41 tokens; the model takes 40"),
        (b"cat", ["--pairs", "-1"], "--pairs is -1; it takes 0 or more"),
        (b"cat", ["--output", "/nowhere/e.npy"], "--output is /nowhere/e.npy; there is no folder /nowhere"),
        (b"cat", ["--output", "/"], "cannot write /: Is a directory"),
        (b"cat", ["--model", "/nowhere"], "--model is /nowhere; there is no such folder, and minilm is the only name"),
    ],
)
def test_refused(
    content: bytes | None,
    options: list[str],
    message: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    assert main(["embed", str(file), "--model", model, *options]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"hipattn: {message.format(file=file)}\n"
    assert not printed.out
