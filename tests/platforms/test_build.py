"""Libraries are compiled once, whole or not at all, and what is missing for that is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hipattn import PlatformError
from hipattn.platforms import cpu
from hipattn.platforms.build import Library, build, compiler

# Stands in for clang: notes that it was called, takes its time, and writes the file after -o.
COMPILER = """#!/bin/sh
echo called >> "{log}"
sleep 0.3
while [ "$1" != -o ]; do shift; done
echo made > "$2"
"""

BUILD = """
from pathlib import Path
from hipattn.platforms.build import Library, build
source = Path({source!r})
print(build("test", [Library("test", (source,))], [source])["test"])
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "test.cpp"
    path.write_text("int test;\n")
    return path


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in in the compiler's place; return where it notes its calls."""
    log, script = tmp_path / "log", tmp_path / "compiler"
    script.write_text(COMPILER.format(log=log))
    script.chmod(0o755)
    monkeypatch.setenv("HIPATTN_CXX", str(script))
    return log


def build_one(source: Path) -> Path:
    return build("test", [Library("test", (source,))], [source])["test"]


def left(tmp_path: Path) -> list[str]:
    """Return what the cache holds, but for the file that is locked."""
    return [path.name for path in tmp_path.glob("cache/platforms/*") if path.suffix != ".lock"]


def test_built_once_and_again_when_an_input_changes(source: Path, log: Path) -> None:
    first = build_one(source)
    assert first.read_text() == "made\n"
    assert build_one(source) == first
    assert log.read_text().split() == ["called"] * 2  # compile, link
    source.write_text("int other;\n")
    assert build_one(source) != first
    assert log.read_text().split() == ["called"] * 4


def test_two_processes_at_once_build_once(source: Path, log: Path) -> None:
    command = [sys.executable, "-c", BUILD.format(source=str(source))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    ends = [(*process.communicate(timeout=60), process.returncode) for process in both]
    assert [status for _, _, status in ends] == [0, 0], ends
    (path,) = {out.strip() for out, _, _ in ends}
    assert Path(path).read_text() == "made\n"
    assert log.read_text().split() == ["called"] * 2
    assert sorted(said.count("compiling the test platform's libraries") for _, said, _ in ends) == [0, 1]


def test_a_compiler_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    monkeypatch.setenv("HIPATTN_CXX", "no-such-clang --fast")
    with pytest.raises(PlatformError, match="the C\\+\\+ compiler 'no-such-clang' does not exist"):
        build_one(source)
    assert not left(tmp_path)


@pytest.mark.parametrize("fails_at", ["-c", "-shared"], ids=["compiling", "linking"])
def test_a_build_that_fails_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, log: Path, fails_at: str
) -> None:
    script = Path(os.environ["HIPATTN_CXX"])
    works = script.read_text()
    fail = f'case " $* " in *" {fails_at} "*) echo "an error, as compilers have them" >&2; exit 3;; esac\nsleep 0.3\n'
    script.write_text(works.replace("sleep 0.3\n", fail))
    with pytest.raises(PlatformError, match=rf"{script} .*{fails_at}.* failed:\nan error, as compilers have them"):
        build_one(source)
    assert log.exists()
    assert not left(tmp_path)
    script.write_text(works)
    assert build_one(source).read_text() == "made\n"


def test_without_ziglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIPATTN_CXX", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)  # as if not installed
    with pytest.raises(PlatformError, match=r"ziglang is not installed: pip install 'hipattn\[cpu\]', or name a clang"):
        compiler()
    monkeypatch.setattr(cpu, "_blas", lambda: Path("libscipy_openblas.so"))
    with pytest.raises(PlatformError, match="ziglang is not installed"):
        cpu.libraries.__wrapped__()
    monkeypatch.setenv("HIPATTN_CXX", "clang++ -O1")
    assert compiler() == ["clang++", "-O1"]


def test_without_a_blas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "scipy_openblas32", None)
    with pytest.raises(PlatformError, match=r"scipy-openblas32 is not installed: pip install 'hipattn\[cpu\]'"):
        cpu.libraries.__wrapped__()
    assert not left(tmp_path)
