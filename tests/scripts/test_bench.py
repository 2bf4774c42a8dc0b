"""bench.py: each suite runs, peers that are not there are marked, one that fails stops nobody, and times are real."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipattn import Device, DeviceTensor, Stream
from hipattn.kernels import scale
from hipattn.runtime import bindings

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIMULATED = bindings.platform().simulated
SUITES = ("staged", "flash", "decode", "kernels", "host", "compile")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--quick", *arguments]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    done = bench("--json", "-", "--dtype", "float16", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench_timing")


def test_a_graph_is_captured_once_and_holds_all_inputs(timing: Any) -> None:
    calls: list[int] = []
    with Stream() as stream:
        x = DeviceTensor.from_numpy(np.ones(3, np.float32), stream=stream)

        def double(i: int) -> None:
            calls.append(i)
            scale.launch(x, 2.0, stream=stream)

        clock = timing.HipGraphClock(stream, 3)
        assert clock(double, 40) > 0
        assert calls == [*range(18)] * 2  # once to warm up, once in the graph
        assert x.numpy()[0] == 2.0 ** (18 + 3 * 18)
        clock(double, 1)
        assert len(calls) == 36
        assert x.numpy()[0] == 2.0 ** (18 + 4 * 18)


def test_the_document_says_where(document: dict[str, Any]) -> None:
    assert document["device"] == Device(0).name
    assert document["simulated"] is SIMULATED
    assert document["ceilings"].keys() == {"copy", "GEMM float16", "GEMM float32"}
    assert all(value > 0 for value in document["ceilings"].values())
    assert [suite["name"] for suite in document["suites"]] == list(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_each_row_has_times_or_reasons(document: dict[str, Any], name: str) -> None:
    suite = document["suites"][SUITES.index(name)]
    assert suite["rows"]
    for row in suite["rows"]:
        assert bool(row["work"]) == bool(suite["unit"])
        for contender, result in row["results"].items():
            if contender == "hipattn flash" or contender.startswith("torch"):
                assert result.get("seconds") or result.get("absent") or result.get("error")
            else:  # what is always there
                assert result["seconds"] > 0, (row["what"], contender, result)
                assert min(result["samples"]) <= result["seconds"] <= max(result["samples"])


@pytest.mark.skipif(not SIMULATED, reason="torch may be there")
def test_torch_is_absent_from_a_simulated_gpu(document: dict[str, Any]) -> None:
    reasons = {"GPU is simulated", "torch is not installed"}
    for row in document["suites"][SUITES.index("decode")]["rows"]:
        for name in ("torch flash", "torch cuDNN"):
            assert any(reason in row["results"][name]["absent"] for reason in reasons)


def test_flop_and_bytes_are_of_the_problem(document: dict[str, Any]) -> None:
    staged = document["suites"][SUITES.index("staged")]["rows"][0]
    sizes = staged["what"]
    assert staged["work"] == 2 * sizes["batch"] * sizes["heads"] * sizes["tokens"] ** 2 * 64  # half of 4: causal
    decode = document["suites"][SUITES.index("decode")]["rows"][0]
    sizes = decode["what"]
    rows = 2 * sizes["heads"] + 2 * sizes["heads_kv"] * sizes["keys"]  # q and out; k and v
    assert decode["work"] == sizes["batch"] * rows * 128 * 2


def test_the_table_warns_of_the_simulator_and_names_what_is_absent(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(document))
    shown = bench("--load", str(file)).stdout
    assert ("THIS GPU IS SIMULATED" in shown) is SIMULATED
    assert "ceiling, copy:" in shown
    assert "hipattn staged" in shown
    if SIMULATED:
        assert "torch cuDNN: –: " in shown
    markdown = bench("--load", str(file), "--markdown").stdout
    assert "| dtype | batch | tokens | heads | hipattn staged | TFLOP/s | of GEMM | NumPy |" in markdown


def test_a_plot_needs_matplotlib_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = tmp_path / "matplotlib.py"
    absent.write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = bench("--plot", str(tmp_path / "plot.png"), "staged")
    assert done.returncode == 1
    assert done.stderr == "bench: --plot needs matplotlib: pip install 'hipattn[bench]'\n"


def test_a_plot(document: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.json").write_text(json.dumps(document))
    done = bench("--load", str(tmp_path / "results.json"), "--plot", str(tmp_path / "plot.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_suite_is_refused_with_those_there_are() -> None:
    done = bench("fast")
    assert done.returncode == 2
    assert "unknown suite 'fast'; there are staged, flash" in done.stderr


def test_contenders_take_turns_and_failures_stop_nobody(timing: Any) -> None:
    order: list[str] = []

    def working(name: str) -> Any:
        return timing.Job(lambda _: order.append(name), timing.WallClock())

    def absent() -> Any:
        raise timing.Absent("not here")

    def late() -> Any:
        calls = iter(range(100))

        def call(_: int) -> None:
            order.append("late")
            if next(calls) == 5:
                raise MemoryError("out of memory\nand more")

        return timing.Job(call, timing.WallClock())

    jobs = {"a": lambda: working("a"), "absent": absent, "late": late, "b": lambda: working("b")}
    found = timing.measure(jobs, quick=True)
    assert order[-5:] == ["a", "late", "b", "a", "b"]
    assert found["absent"] == {"absent": "not here"}
    assert found["late"] == {"error": "MemoryError: out of memory"}
    assert len(found["a"]["samples"]) == len(found["b"]["samples"]) == 2


def test_a_slow_call_on_the_host_is_made_once(timing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PATIENCE", 0.01)
    calls: list[int] = []

    def slow(i: int) -> None:
        calls.append(i)
        time.sleep(0.02)

    job = timing.Job(slow, timing.WallClock(), compiles=False)
    found = timing.measure({"slow": lambda: job})["slow"]
    assert len(calls) == 1
    assert 0.02 <= found["seconds"] < 1


def test_device_time_is_that_of_one_call(timing: Any, stream: Any) -> None:
    """A sample of many calls gives the mean of one, less than what all take together."""
    with stream:
        clock = timing.HipClock(stream)
        start = time.perf_counter()
        seconds = clock(lambda _: time.sleep(0.002), 10)
        assert seconds < (time.perf_counter() - start) / 5
