from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from hipattn.compiler.cache import DiskCache


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256)) * 1000])
def test_what_was_put_is_got(tmp_path: Path, body: bytes) -> None:
    key = DiskCache.key("source", "options")
    assert DiskCache(tmp_path).get(key) is None
    DiskCache(tmp_path).put(key, body)
    assert DiskCache(tmp_path).get(key) == body
    assert len(files(tmp_path)) == 1


def test_keys_tell_all_parts_apart() -> None:
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("abd",)]
    assert len({DiskCache.key(*each) for each in parts}) == len(parts)
    assert DiskCache.key("a", "b") == DiskCache.key("a", "b")


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-1],
        lambda d: d[:20],
        lambda d: d[:0],
        lambda d: d[:-1] + bytes([d[-1] ^ 1]),
        lambda d: b"x" + d[1:],
    ],
    ids=["short", "head", "empty", "flipped", "magic"],
)
def test_a_damaged_entry_is_left_out_and_can_be_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    cache = DiskCache(tmp_path)
    key = cache.key("x")
    cache.put(key, b"body")
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "hipattn"):
        assert cache.get(key) is None
    assert f"{path} is damaged" in caplog.text
    cache.put(key, b"body")
    assert cache.get(key) == b"body"


def test_a_folder_that_cannot_be_written_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskCache, "_warned", False)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    cache = DiskCache(blocked)
    with caplog.at_level(logging.WARNING, "hipattn"):
        cache.put(cache.key("x"), b"body")
        cache.put(cache.key("y"), b"body")
    assert caplog.text.count("compiled kernels are not kept") == 1
    assert cache.get(cache.key("x")) is None


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    cache = DiskCache(tmp_path)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        cache.put(cache.key("x"), b"body")
    assert files(tmp_path) == []


def test_writers_may_race(tmp_path: Path) -> None:
    body = bytes(100_000)
    key = DiskCache.key("x")
    seen: list[bytes | None] = []

    def work() -> None:
        for _ in range(20):
            DiskCache(tmp_path).put(key, body)
            seen.append(DiskCache(tmp_path).get(key))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [body] * 80
    assert len(files(tmp_path)) == 1


def test_the_default_folder_is_in_hipattn_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path))
    assert DiskCache().folder == tmp_path / "kernels"
