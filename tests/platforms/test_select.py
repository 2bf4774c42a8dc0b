"""Which libraries are chosen, for ROCm with a device, without one, and not there. The simulator's stand in for it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hipattn import ConfigError, PlatformError
from hipattn.platforms import cpu, nvidia, select
from hipattn.platforms.build import ABI, Library, build
from hipattn.platforms.select import choose, rocm_library
from hipattn.runtime import bindings

pytestmark = pytest.mark.skipif(
    bindings.platform().name != "cpu", reason="the simulator's libraries cannot be loaded beside those in use"
)


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
    monkeypatch.setattr(nvidia, "missing_device", lambda: "nor one of NVIDIA")
    with caplog.at_level(logging.WARNING, "hipattn"):
        assert choose(simulator).name == "cpu"
    assert "simulates an AMD GPU on the CPU (slow, for development): there is none" in caplog.text


def test_the_simulator_runs_beside_a_rocm_without_a_gpu(tmp_path: Path) -> None:
    """Which is loaded, to ask it for devices, by the name that hip-python gives the loader, and by others for all."""
    source = tmp_path / "rocm.cpp"
    runtime = "".join(file.read_text() for file in (ABI.parent / "cpu" / "src").glob("api_*.cpp"))
    functions = set(re.findall(r"^EXPORT hipError_t (hip\w+)", runtime, re.MULTILINE))
    assert {"hipGetDeviceCount", "hipGetDevice", "hipModuleLaunchKernel"} <= functions
    export = 'extern "C" __attribute__((visibility("default")))'
    source.write_text("".join(f"{export} int {name}(...) {{ return 100; }}\n" for name in sorted(functions)))
    fake = build("fake-rocm", [Library("fake", (source,))], [source])["fake"]
    for name in ("amdhip64", "hiprtc"):
        (tmp_path / f"lib{name}.so").symlink_to(fake)
    code = """if True:
        import ctypes, numpy as np
        ctypes.CDLL("libamdhip64.so", ctypes.RTLD_GLOBAL)
        import hipattn
        for method in ("flash", "staged"):
            print(hipattn.attention(*np.ones((3, 1, 2, 1, 4), np.float32), method=method).tolist())
        print(hipattn.runtime.bindings.platform())
        """
    changed = {"HIPATTN_PLATFORM": "auto", "LD_LIBRARY_PATH": str(tmp_path), "HIPATTN_NVIDIA_CUDA": "/nowhere"}
    environment = {name: value for name, value in os.environ.items() if name not in ("ROCM_PATH", "ROCM_HOME")}
    done = subprocess.run([sys.executable, "-c", code], env=environment | changed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[:2] == [str(np.ones((1, 2, 1, 4)).tolist())] * 2
    assert "Platform(name='cpu'" in said[2]
    assert "ROCm (libamdhip64.so) finds no AMD GPU" in said[2]


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


@pytest.mark.parametrize("name", ["HIPATTN_PLATFORM", "HIPATTN_CPU_ARCH"])
def test_what_is_not_known_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "cpu")
    monkeypatch.setenv(name, "vulkan")
    monkeypatch.setattr(cpu, "libraries", cpu.libraries.__wrapped__)  # not those of this process
    with pytest.raises(ConfigError, match=f"{name} is 'vulkan'; accepted: .*(nvidia or cpu|gfx942)"):
        choose(nowhere)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"HIPATTN_PLATFORM": "amd", "ROCM_PATH": "/nowhere", "ROCM_HOME": "/nowhere"},
            "PlatformError: HIPATTN_PLATFORM is amd, but ROCm's libamdhip64 was not found (ROCM_PATH names where",
        ),
        ({"HIPATTN_PLATFORM": "vulkan"}, "ConfigError: HIPATTN_PLATFORM is 'vulkan'; accepted: auto, amd, nvidia or"),
        (
            {"HIPATTN_PLATFORM": "cpu", "HIPATTN_CPU_ARCH": "gfx942,gfx000"},
            "ConfigError: HIPATTN_CPU_ARCH is 'gfx942,gfx000'; accepted: a comma-separated list of gfx90a",
        ),
        (
            {"HIPATTN_PLATFORM": "cpu", "HIPATTN_CXX": "no-such-clang"},
            "PlatformError: the C++ compiler 'no-such-clang' does not exist",
        ),
        (
            {"HIPATTN_PLATFORM": "cpu", "HIPATTN_CXX": "false"},
            "PlatformError: false -std=c++17",
        ),
    ],
    ids=["no ROCm", "platform", "arch", "no compiler", "a compiler that fails"],
)
def test_a_user_s_first_call_says_what_is_wrong(changed: dict[str, str], says: str) -> None:
    code = "import hipattn; print('imported', flush=True); hipattn.Device(0)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | changed, capture_output=True, text=True)
    assert done.stdout == "imported\n"
    assert done.returncode == 1
    assert f"\nhipattn.errors.{says}" in done.stderr


def test_nvidia_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "nvidia")
    monkeypatch.setattr(nvidia, "missing_device", lambda: "there is none")
    nvidia.libraries.cache_clear()
    monkeypatch.setenv("HIPATTN_NVIDIA_NVRTC", "/nowhere/libnvrtc.so.13")
    with pytest.raises(PlatformError, match=r"HIPATTN_NVIDIA_NVRTC is '/nowhere/libnvrtc.so.13', which is no file"):
        choose(nowhere)
    monkeypatch.setenv("HIPATTN_NVIDIA_NVRTC", "")
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(PlatformError, match=r"needs cuda-pathfinder.*pip install 'hipattn\[nvidia\]'"):
        choose(nowhere)


def test_auto_says_why_an_nvidia_gpu_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "auto")
    monkeypatch.setattr(nvidia, "missing_device", lambda: "")
    nvidia.libraries.cache_clear()
    monkeypatch.setenv("HIPATTN_NVIDIA_NVRTC", "/nowhere/libnvrtc.so.13")
    with caplog.at_level(logging.WARNING, "hipattn"):
        assert choose(nowhere).name == "cpu"
    assert "there is an NVIDIA GPU, but HIPATTN_NVIDIA_NVRTC is" in caplog.text
