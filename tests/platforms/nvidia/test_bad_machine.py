"""What is wrong with a machine for the nvidia platform is said at once: what was found, and what is needed.

A library of our own stands in for the driver and for NVRTC.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hipattn import PlatformError
from hipattn.platforms import nvidia
from hipattn.platforms.build import Library, build
from hipattn.runtime import bindings

pytestmark = pytest.mark.skipif(
    bindings.platform().name != "cpu", reason="one machine that is right is enough, and here is none"
)

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return the environment of a machine on which nothing is wrong."""
    fake = str(build("fake-cuda", [Library("fake", (SOURCE,))], [SOURCE])["fake"])
    right = {"FAKE_INIT": 0, "FAKE_DEVICES": 1, "FAKE_CAPABILITY": 90, "FAKE_DRIVER": 13000, "FAKE_NVRTC": 13000}
    paths = {"HIPATTN_NVIDIA_CUDA": fake, "HIPATTN_NVIDIA_NVRTC": fake, "HIPATTN_NVIDIA_CUBLAS": fake}
    for name, value in {**right, **paths}.items():
        monkeypatch.setenv(name, str(value))
    return monkeypatch


def problem() -> str:
    """Return what stands in the way of the platform, "" if nothing does."""
    try:
        nvidia._check_compiler(os.environ["HIPATTN_NVIDIA_NVRTC"], nvidia._check_device())
    except PlatformError as error:
        return str(error)
    return nvidia.missing_device()


def test_nothing_is_wrong(machine: pytest.MonkeyPatch) -> None:
    assert problem() == ""
    machine.setenv("FAKE_NVRTC", "12040")  # a driver loads what an older compiler made
    machine.setenv("FAKE_CAPABILITY", "80")
    assert problem() == ""


def test_a_driver_that_is_too_old(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("FAKE_DRIVER", "12080")
    assert "is of CUDA 13.0; the NVIDIA driver is for CUDA 12.8 and does not load what it compiles" in problem()
    assert "update the driver, or, for CUDA 12, pip install 'hipattn[nvidia-cu12]'" in problem()


def test_a_gpu_that_is_too_old(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("FAKE_CAPABILITY", "75")
    assert "device 0, NVIDIA Fake, has compute capability 7.5; hipattn needs 8.0 (Ampere) or above" in problem()


def test_a_gpu_that_is_too_new_for_nvrtc(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("FAKE_CAPABILITY", "120")
    assert "compiles for sm_75 to sm_90; device 0 is NVIDIA Fake, sm_120: a newer one is needed" in problem()
    assert "pip install 'hipattn[nvidia]'" in problem()


def test_an_nvrtc_that_is_too_old(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("FAKE_NVRTC", "11080")
    assert "is of CUDA 11.8; hipattn needs CUDA 12 or newer: pip install" in problem()


def test_what_is_no_nvrtc(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = tmp_path / "libnvrtc.so.13"
    text.write_text("no library")
    machine.setenv("HIPATTN_NVIDIA_NVRTC", str(text))
    assert f"{text} is no NVRTC of CUDA 12 or newer: " in problem()
    machine.setenv("HIPATTN_NVIDIA_NVRTC", "libc.so.6")
    assert "libc.so.6 is no NVRTC of CUDA 12 or newer: " in problem()


def test_no_device(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("FAKE_DEVICES", "0")
    assert nvidia.missing_device() == "the NVIDIA driver finds no GPU"
    machine.setenv("FAKE_INIT", "803")
    unsupported = "system has unsupported display driver / cuda driver combination"
    assert nvidia.missing_device() == f"the NVIDIA driver finds no GPU (CUDA status 803: {unsupported})"
    machine.setenv("FAKE_INIT", "12345")
    assert "CUDA status 12345: unknown error" in nvidia.missing_device()
    machine.setenv("HIPATTN_NVIDIA_CUDA", "/nowhere/libcuda.so.1")
    assert "the NVIDIA driver was not found: /nowhere/libcuda.so.1" in nvidia.missing_device()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"FAKE_CAPABILITY": "61"},
            "nvidia, but device 0, NVIDIA Fake, has compute capability 6.1; hipattn needs 8.0",
        ),
        ({"HIPATTN_NVIDIA_CUDA": "/nowhere/libcuda.so.1"}, "driver's /nowhere/libcuda.so.1 cannot be opened"),
        ({}, "the NVIDIA driver is too old"),  # the stand-in has not all that is asked of a driver
    ],
    ids=["an old GPU", "no driver", "an old driver"],
)
def test_a_user_s_first_call_says_so(machine: pytest.MonkeyPatch, wrong: dict[str, str], says: str) -> None:
    code = "import hipattn; hipattn.Device(0)"
    environment = os.environ | {"HIPATTN_PLATFORM": "nvidia"} | wrong
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "hipattn.errors.PlatformError: " in done.stderr
    assert says in done.stderr
