"""Tensors of a safetensors file, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from hipattn.errors import ModelError
from hipattn.models.safetensors_file import SafetensorsFile

safetensors = pytest.importorskip("safetensors.numpy")

VALUES = np.random.default_rng(3).standard_normal((5, 4)).astype(ml_dtypes.bfloat16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = {"b": VALUES.astype(np.float32), "a": VALUES.astype(np.float16), "c": VALUES, "i": np.arange(4)}
    safetensors.save_file(tensors, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize(("name", "itemsize"), [("a", 2), ("b", 4), ("c", 2)])
def test_floats(path: Path, name: str, itemsize: int) -> None:
    file = SafetensorsFile(path)
    expected = {"a": VALUES.astype(np.float16)}.get(name, VALUES).astype(np.float32)
    got = file.tensor(name)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)
    assert (file.shape(name), file.nbytes(name)) == ((5, 4), 20 * itemsize)
    for rows in (slice(1, 3), slice(4, 9), slice(None, 2)):
        np.testing.assert_array_equal(file.tensor(name, rows=rows), expected[rows])


def test_names(path: Path) -> None:
    assert SafetensorsFile(path).names == ("a", "b", "c", "i")


def test_refused(path: Path) -> None:
    file = SafetensorsFile(path)
    with pytest.raises(ModelError, match="has no tensor 'd' among its 4"):
        file.tensor("d")
    for function in (file.tensor, file.nbytes):
        with pytest.raises(ModelError, match="tensor i is I64; accepted: F32, F16, BF16"):
            function("i")


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*absent: No such file"):
        SafetensorsFile(tmp_path / "absent")


def test_damaged_or_truncated_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04" + bytes(100), whole + b"x", *(whole[:n] for n in range(0, len(whole), 7))):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is no safetensors file, or a truncated or damaged one"):
            SafetensorsFile(path)


def test_without_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModelError, match=r"safetensors is not installed: pip install 'hipattn\[models\]'"):
        SafetensorsFile(path)
