from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from hipattn import CompileError, Device
from hipattn.compiler import loader, specialise
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.specialise import Specialisation
from hipattn.runtime import Arguments, Kernel, bindings


class FillParams(Arguments):
    _fields_ = (("out", ctypes.c_void_p), ("unused", ctypes.c_int64))


FILL = Specialisation("fill", "fill", FillParams, {"VALUE": 3})


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was loaded before, and there is one kernel."""
    (tmp_path / "fill.hip").write_text(
        'extern "C" __global__ void fill(FillParams p) { *static_cast<int*>(p.out) = VALUE; }\n'
    )
    monkeypatch.setattr(specialise, "source_dir", lambda: tmp_path)
    monkeypatch.setattr(loader, "_loaded", {})
    monkeypatch.setattr(loader, "DiskCache", lambda: DiskCache(tmp_path / "cache"))


def count(calls: list[tuple[str, tuple[object, ...]]], name: str) -> int:
    return [called for called, _ in calls].count(name)


def test_a_kernel_is_compiled_and_loaded_once(device: Device) -> None:
    with bindings.record() as calls:
        kernels = {loader.load(FILL, device) for _ in range(3)}
    assert len(kernels) == 1
    assert count(calls, "hiprtcCompileProgram") == count(calls, "hipModuleLoadData") == 1
    (kernel,) = kernels
    assert (kernel.name, kernel.arguments) == ("fill", FillParams)
    assert kernel.module.device is device


def test_the_disk_saves_the_compilation(device: Device) -> None:
    loader.load(FILL, device)
    loader._loaded.clear()
    with bindings.record() as calls:
        loader.load(FILL, device)
    assert count(calls, "hiprtcCompileProgram") == 0
    assert count(calls, "hipModuleLoadData") == 1


def test_threads_that_want_the_same_kernel_share_it(device: Device) -> None:
    found: list[Kernel] = []

    def work() -> None:
        found.append(loader.load(FILL, device))

    with bindings.record() as calls:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert count(calls, "hiprtcCompileProgram") == 1


@pytest.mark.skipif(Device.count() < 2, reason="needs two devices")
def test_each_device_has_its_own() -> None:
    kernels = [loader.load(FILL, Device(index)) for index in range(2)]
    assert [kernel.module.device.index for kernel in kernels] == [0, 1]


def test_a_kernel_that_does_not_compile_is_compiled_once_and_its_errors_are_new(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_failed", {})
    (tmp_path / "fill.hip").write_text("nonsense\n")
    errors = []
    with bindings.record() as calls:
        for _ in range(3):
            with pytest.raises(CompileError, match="nonsense") as caught:
                loader.load(FILL, device)
            errors.append(caught.value)
    assert count(calls, "hiprtcCompileProgram") == 1
    assert len({id(error) for error in errors}) == 3
