"""Which libraries are chosen, for ROCm with a device, without one, and not there. The simulator's stand in for it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from hipattn import PlatformError
from hipattn.platforms import cpu, select
from hipattn.platforms.select import choose, rocm_library


def nowhere(shortname: str) -> bytes:
    return f"/nowhere/lib{shortname}.so".encode()


def simulator(shortname: str) -> bytes:
    return os.fsencode(cpu.libraries()[shortname])


def test_amd_without_rocm_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "amd")
    with pytest.raises(PlatformError, match=r"HIPATTN_PLATFORM is amd, but .*libamdhip64 was not found.*ROCM_PATH"):
        choose(nowhere)


def test_amd_needs_the_compiler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "amd")
    with pytest.raises(PlatformError, match="libhiprtc was not found"):
        choose(lambda name: nowhere(name) if name == "hiprtc" else simulator(name))


def test_amd_needs_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "amd")
    monkeypatch.setattr(select, "_missing_device", lambda _: "there is none")
    assert choose(simulator).name == "amd"


def test_auto_takes_what_has_a_device(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "auto")
    assert choose(simulator).name == "amd"
    monkeypatch.setattr(select, "_missing_device", lambda _: "there is none")
    with caplog.at_level(logging.WARNING, "hipattn"):
        assert choose(simulator).name == "cpu"
    assert "there is none; using the cpu platform" in caplog.text


def test_a_fingerprint_is_of_the_compiler_s_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "amd")
    copy = tmp_path / "libhiprtc.so"
    copy.write_bytes(Path(os.fsdecode(simulator("hiprtc"))).read_bytes())
    there = choose(lambda name: os.fsencode(copy) if name == "hiprtc" else simulator(name))
    assert there.fingerprint == choose(simulator).fingerprint


def test_a_library_under_its_versioned_name_is_found(tmp_path: Path) -> None:
    expected = tmp_path / "libhiprtc.so"

    def find(_: str) -> bytes:
        return os.fsencode(expected)

    assert rocm_library(find, "hiprtc") == str(expected)
    versioned = tmp_path / "libhiprtc.so.7"
    versioned.write_bytes(Path(os.fsdecode(simulator("hiprtc"))).read_bytes())
    assert rocm_library(find, "hiprtc") == str(versioned)
    expected.symlink_to(versioned)
    assert rocm_library(find, "hiprtc") == str(expected)
