from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hipattn
from hipattn import Device
from hipattn.cli import main, report
from hipattn.cli.output import size
from hipattn.compiler.cache import DiskCache
from hipattn.config import VARIABLES
from hipattn.runtime import bindings
from tests.helpers.command import run

simulated = pytest.mark.skipif(not bindings.platform().simulated, reason="needs the cpu platform")


# ---- info ----


@simulated
def test_info_on_the_cpu_platform() -> None:
    done = run("info", HIPATTN_PLATFORM="cpu", HIPATTN_CPU_ARCH="gfx1100,gfx950", HIPATTN_NONSENSE="1")
    assert done.returncode == 0, done.stderr
    assert "platform  cpu: HIPATTN_PLATFORM is cpu" in done.stdout
    assert "device    0: Simulated gfx1100" in done.stdout
    assert "gfx950, waves of 64, 160 KiB LDS, 256 compute units, 8 GiB memory" in done.stdout
    assert f"versions  hipattn {hipattn.__version__}, hip-python " in done.stdout
    assert "variable  HIPATTN_CPU_ARCH=gfx1100,gfx950\n" in done.stdout
    assert "variable  HIPATTN_NONSENSE=1 (hipattn has no such variable)" in done.stdout
    assert "HIPATTN_CPU_BLAS" not in done.stdout  # the platform sets it, not the user


@simulated
def test_info_as_json() -> None:
    done = run("info", "--json", HIPATTN_PLATFORM="cpu")
    facts = json.loads(done.stdout)
    assert facts["platform"] == "cpu"
    assert facts["versions"].keys() == {"hipattn", "hip-python", "hiprtc"}
    (device,) = facts["devices"]
    assert (device["arch"], device["wave_size"], device["simulated"]) == ("gfx942", 64, True)
    assert facts["cache"]["folder"] == str(DiskCache().folder)
    assert facts["variables"].keys() == {"HIPATTN_CACHE_DIR", "HIPATTN_PLATFORM"}


@simulated
def test_info_without_rocm_and_by_default_says_what_to_set(tmp_path: Path) -> None:
    done = run("info", ROCM_PATH=str(tmp_path))
    assert done.returncode == 0
    assert "platform  cpu: ROCm's libamdhip64 was not found" in done.stdout
    assert "HIPATTN_PLATFORM=cpu simulates one" in done.stdout
    assert not done.stderr  # the reason is in the report, once


@simulated
def test_info_where_nothing_can_run(tmp_path: Path) -> None:
    done = run("info", HIPATTN_PLATFORM="amd", ROCM_PATH=str(tmp_path))
    assert done.returncode == 1
    assert "platform  none: HIPATTN_PLATFORM is amd, but ROCm's libamdhip64 was not found" in done.stdout
    assert "without a GPU, HIPATTN_PLATFORM=cpu simulates one" in done.stdout  # and nothing that is set already
    assert json.loads(run("info", "--json", HIPATTN_PLATFORM="amd").stdout)["devices"] == []


@pytest.mark.rocm
@pytest.mark.skipif(bindings.platform().name != "amd" or Device.count() > 0, reason="needs ROCm and no GPU")
def test_info_with_rocm_and_no_gpu() -> None:
    named = run("info", HIPATTN_PLATFORM="amd")
    assert named.returncode == 1
    assert "there is no AMD GPU; kernels can be compiled, not run" in named.stdout
    assert "HIPATTN_PLATFORM=cpu simulates one" in named.stdout
    automatic = run("info")
    assert "finds no AMD GPU (hipGetDeviceCount: status 100)" in automatic.stdout
    assert "HIPATTN_PLATFORM=amd compiles for one" in automatic.stdout


def test_info_with_a_variable_that_is_not_accepted() -> None:
    done = run("info", HIPATTN_PLATFORM="vulkan")
    assert done.returncode == 1
    assert done.stderr == f"hipattn: HIPATTN_PLATFORM is 'vulkan'; accepted: {VARIABLES['HIPATTN_PLATFORM'].accepts}\n"


# ---- inspect and compile ----


@simulated
@pytest.mark.parametrize("command", [("inspect", "softmax"), ("compile",)])
def test_code_for_amd_gpus_needs_amd_s_compiler(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HIPATTN_PLATFORM", "cpu")
    assert main([*command, "--arch", "gfx942"]) == 1
    said = capsys.readouterr().err
    assert "the cpu platform's code objects hold instructions of this machine's CPU" in said
    assert "install ROCm's compiler (libhiprtc; no GPU is needed) and set HIPATTN_PLATFORM=amd" in said
    for platform in ("auto", "amd"):
        done = run(*command, "--arch", "gfx942", HIPATTN_PLATFORM=platform, ROCM_PATH=str(tmp_path))
        assert done.returncode == 1
        assert done.stderr.startswith("hipattn: code for AMD GPUs needs ROCm's compiler (libhiprtc), and no GPU: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["inspect", "nothing", "--arch", "gfx942"],
            "KERNEL is 'nothing'; accepted: activation, add, attention_softmax",
        ),
        (["inspect", "softmax", "--arch", "gfx1"], "arch is 'gfx1'; accepted: gfx900, "),
        (["inspect", "softmax", "--arch", "gfx942", "--arch", "mi300"], "arch is 'mi300'; accepted: gfx900, "),
        (["compile", "--arch", "gfx942", "--arch", "gfx1"], "arch is 'gfx1'; accepted: gfx900, "),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_accepted(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"hipattn: {message}")
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["inspect"], ["inspect", "softmax"], ["compile"], ["info", "--yaml"], ["cache", "all"]]
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert "usage: hipattn" in capsys.readouterr().err


def test_a_reader_that_has_had_enough() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "hipattn", "cache"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("hipattn.cli.cache.run", interrupted)
    assert main(["cache"]) == 130
    assert capsys.readouterr().err == "\n"


def test_a_kernel_is_named_by_kernel_source_or_pattern() -> None:
    by_kernel = report.select("attention_softmax", "gfx942")
    assert by_kernel == report.select("softmax", "gfx942")
    (one,) = report.select(by_kernel[0].name, "gfx942")
    assert one == by_kernel[0]
    assert set(report.select("attention_softmax_float32_float16_*", "gfx942")) < set(by_kernel)


@pytest.mark.rocm
@pytest.mark.skipif(bindings.platform().name != "amd", reason="needs ROCm's compiler")
def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "scale", "--arch", "gfx942", "--arch", "gfx1201"]
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["arch"] for row in rows} == {"gfx942", "gfx1201"}
    assert {row["kernel"]["name"] for row in rows} == {"scale_inplace"}
    assert all(row["counts"]["memory"] >= 2 and row["occupancy"] >= 8 for row in rows)
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "scale_inplace_float16_block256_vector8" in table
    assert str(rows[0]["counts"]["valu"]) in table


@pytest.mark.rocm
@pytest.mark.skipif(bindings.platform().name != "amd", reason="needs ROCm's compiler")
def test_compile_fills_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path))
    wanted = report.select("scale", "gfx1100")
    monkeypatch.setattr("hipattn.kernels.defaults", lambda _: wanted)
    assert main(["compile", "--arch", "gfx1100"]) == 0
    assert capsys.readouterr().out.startswith(f"gfx1100: {len(wanted)} kernels in ")
    assert len(DiskCache().files()) == len(wanted)


# ---- cache ----


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kernels'}: 0 kernels, 0 bytes\n"
    cache = DiskCache()
    for text in ("a", "b"):
        cache.put(cache.key(text), bytes(1000))
    (tmp_path / "other").write_text("left alone")
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kernels'}: 2 kernels, 2.031 KiB\n"
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kernels'}: 2 kernels, 2.031 KiB, removed\n"
    assert cache.get(cache.key("a")) is None
    assert (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (65536, "64 KiB"), (8 << 30, "8 GiB"), (3 << 41, "6144 GiB")],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
