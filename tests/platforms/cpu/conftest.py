"""The simulated runtime without the library above it: hip-python, control functions, kernels in plain C++."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HIPATTN_PLATFORM", "cpu")

from hipattn import config
from hipattn.platforms import build, cpu
from hipattn.platforms.cpu import control
from tests.platforms.cpu.simulator import Simulator

if config.get("HIPATTN_PLATFORM") not in ("auto", "cpu"):
    collect_ignore_glob = ["test_*.py"]  # the simulator's own tests, which choose it

ROOT = Path(__file__).parents[3]
KERNELS = Path(__file__).with_name("runtime_kernels.cpp")

# An index outside an array traps, too deep a stack meets its guard page, calls in two branches stay two.
KERNEL_FLAGS = (
    *("-fsanitize=array-bounds", "-fsanitize-trap=array-bounds", "-fstack-clash-protection"),
    *("-fconvergent-functions", f"-I{cpu.SOURCE}"),
)


@pytest.fixture(scope="session")
def compile_kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that compiles the kernels of these tests for an architecture."""
    made: dict[str, Path] = {}

    def compile_for(arch: str) -> Path:
        if arch not in made:
            path = tmp_path_factory.mktemp("kernels") / f"{arch}.so"
            command = [
                *build.compiler(),
                *build.FLAGS,
                *build.LINK_FLAGS,
                *KERNEL_FLAGS,
                f'-DARCH="{arch}"',
                str(KERNELS),
                "-o",
                str(path),
            ]
            environment = os.environ | build.compiler_environment()
            subprocess.run(command, check=True, env=environment)
            made[arch] = path
        return made[arch]

    return compile_for


@pytest.fixture
def sim() -> Iterator[Simulator]:
    """Return the simulator; the test must leave no memory behind and may leave a broken device."""
    simulator = Simulator()
    simulator.hipSetDevice(0)
    before = control.live_allocations()
    yield simulator
    simulator.clear_fault()
    # Fewer, where what an earlier test let go of was freed during this one.
    assert control.live_allocations() <= before, "the test leaked memory"


@pytest.fixture
def run_script(compile_kernels: Callable[[str], Path]) -> Callable[..., str]:
    """Return a function that runs Python code in a process of its own and returns what it printed."""

    def run(code: str, *archs: str, **environment: str) -> str:
        archs = archs or ("gfx942",)
        images = [str(compile_kernels(arch)) for arch in archs]
        start = "\n".join(
            (
                "import os, sys",
                "os.environ['HIPATTN_PLATFORM'] = 'cpu'",
                "from tests.platforms.cpu.test_hip_runtime import *",
                "sim = Simulator()",
                f"images = [Path(p).read_bytes() for p in {images!r}]",
            )
        )
        done = subprocess.run(
            [sys.executable, "-c", f"{start}\n{code}"],
            env=os.environ | {"HIPATTN_CPU_ARCH": ",".join(archs)} | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
