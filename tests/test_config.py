"""Each HIPATTN_* variable: its default, what it accepts, what it refuses; and that the README tells the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hipattn import ConfigError, config

NUMBERS = {"0": 0, "7": 7, "8589934592": 8 << 30}
NO_NUMBERS = ("-1", "1.5", "many", "1e3", "0x10")
TEXTS = {"": "", "some text": "some text"}

# Name → the default's value, accepted texts with their values, refused texts.
CASES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "HIPATTN_PLATFORM": ("auto", {"auto": "auto", "amd": "amd", "cpu": "cpu"}, ("AMD", "rocm", "amd,cpu", " cpu")),
    "HIPATTN_SYNC": (False, {"0": False, "1": True}, ("2", "yes", "true")),
    "HIPATTN_FALLBACK": ("cpu", {"cpu": "cpu", "error": "error"}, ("gpu", "Error", "1")),
    "HIPATTN_CACHE_DIR": ("", TEXTS, ()),
    "HIPATTN_CXX": ("", TEXTS, ()),
    "HIPATTN_NVIDIA_NVRTC": ("", TEXTS, ()),
    "HIPATTN_NVIDIA_CUBLAS": ("", TEXTS, ()),
    "HIPATTN_CPU_ARCH": (
        ("gfx942",),
        {"gfx90a": ("gfx90a",), "gfx1100,gfx950,gfx1201": ("gfx1100", "gfx950", "gfx1201")},
        ("gfx000", "gfx942,", "gfx942;gfx1100", "GFX942"),
    ),
    "HIPATTN_CPU_MEMORY": (8 << 30, NUMBERS, NO_NUMBERS),
    "HIPATTN_CPU_THREADS": (0, NUMBERS, NO_NUMBERS),
    "HIPATTN_CPU_FAIL": (
        "",
        {text: text for text in ("hipMalloc:3", "hipMalloc:1,hipblasCreate:20")},
        ("hipMalloc", "hipMalloc:x", "hipMalloc:0", "malloc:1", "hipMalloc:1,"),
    ),
    "HIPATTN_CPU_DELAY": (0, NUMBERS, NO_NUMBERS),
    "HIPATTN_CPU_SEED": ("", TEXTS, ()),
}


def test_every_variable_is_tested() -> None:
    assert list(CASES) == list(config.VARIABLES)


@pytest.mark.parametrize("name", CASES)
def test_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name, raising=False)
    assert config.get(name) == CASES[name][0]
    monkeypatch.setenv(name, "")  # as if unset
    assert config.get(name) == CASES[name][0]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in CASES for text in CASES[name][1] if text])
def test_accepted(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    assert config.get(name) == CASES[name][1][text]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in CASES for text in CASES[name][2]])
def test_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    says = f"{name} is {text!r}; accepted: {config.VARIABLES[name].accepts}"
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        config.get(name)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path))
    assert config.cache_dir() == tmp_path
    monkeypatch.delenv("HIPATTN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert config.cache_dir() == tmp_path / "user" / "hipattn"


def test_the_readme_s_table() -> None:
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| `HIPATTN_")]
    assert rows == [
        f"| `{v.name}` | {f'`{v.default}`' if v.default else ''} | {v.meaning} ({v.accepts}) |"
        for v in config.VARIABLES.values()
    ]
