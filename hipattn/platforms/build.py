"""Compile a platform's libraries at first use, into the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import filelock

from hipattn import config
from hipattn.errors import PlatformError

__all__ = ["ABI", "Library", "build", "compiler", "compiler_environment"]

# What HIP's libraries are to their callers, and what is needed to be such a library: for all platforms.
ABI = Path(__file__).parent / "abi"

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti")
# No C++ library: building ziglang's own would take most of a minute. A library's calls of its own functions stay in it,
# though another that is loaded, ROCm's, has some of the same name.
LINK_FLAGS = ("-shared", "-nostdlib++", "-Wl,-Bsymbolic")


@dataclass(frozen=True)
class Library:
    """A shared library: hip-python's short name of it, its sources, and the libraries it is linked to."""

    name: str
    sources: tuple[Path, ...]
    links: tuple[str, ...] = ()


def compiler() -> list[str]:
    """Return the command of the C++ compiler: HIPATTN_CXX, or ziglang's clang.

    Raises
    ------
    PlatformError
        HIPATTN_CXX is not set and ziglang is not installed.
    """
    chosen = config.get("HIPATTN_CXX")
    if chosen:
        return shlex.split(chosen)
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise PlatformError(
            "the cpu and nvidia platforms need a C++ compiler and ziglang is not installed: "
            "pip install 'hipattn[cpu]', or name a clang in HIPATTN_CXX"
        )
    return [str(Path(spec.origin).parent / "zig"), "c++"]


def compiler_environment() -> dict[str, str]:
    """Return the variables that keep ziglang's own caches inside hipattn's."""
    zig = str(config.cache_dir() / "zig")
    return {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}


def build(platform: str, libraries: Sequence[Library], inputs: Sequence[Path]) -> Mapping[str, Path]:
    """Compile `libraries`, unless the cache has them, and return name → path.

    Parameters
    ----------
    platform
        The platform's name, for the names of the libraries, the cache's path and the message.
    libraries
        What to compile. A library may link to those before it.
    inputs
        All files that the result depends on, headers too.

    Raises
    ------
    PlatformError
        The compiler is missing or fails, or the cache cannot be written.
    """
    command = compiler()
    sonames = {library.name: _soname(platform, library.name) for library in libraries}
    digest = hashlib.sha256(repr((command, FLAGS, LINK_FLAGS, sonames)).encode())
    for path in sorted(inputs):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = config.cache_dir() / "platforms" / f"{platform}-{digest.hexdigest()[:20]}"
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(str(folder) + ".lock"):
                if not folder.is_dir():
                    print(f"hipattn: compiling the {platform} platform's libraries, once", file=sys.stderr, flush=True)
                    _compile(command, platform, libraries, folder)
    except OSError as error:
        raise PlatformError(
            f"the {platform} platform's libraries cannot be kept in {folder.parent}: {error}; HIPATTN_CACHE_DIR names "
            "another directory"
        ) from error
    return {name: folder / soname for name, soname in sonames.items()}


def _soname(platform: str, name: str) -> str:
    """Return a name of its own: ROCm's may be loaded already, and the loader would take one for the other."""
    return f"libhipattn-{platform}-{name}.so"


def _compile(command: list[str], platform: str, libraries: Sequence[Library], folder: Path) -> None:
    """Compile into a folder beside `folder` and move it there whole, so that half a build is never seen."""
    environment = os.environ | compiler_environment()

    def run(arguments: list[str]) -> None:
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise PlatformError(f"{shlex.join([*command, *arguments])} failed:\n{done.stderr.strip()}")

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as made:
        work = Path(made, "lib")
        work.mkdir()
        objects = {source: Path(made, f"{source.stem}.o") for lib in libraries for source in lib.sources}
        # Older GCCs do not know the flag, and their C++ library is there.
        link_flags = [flag for flag in LINK_FLAGS if flag != "-nostdlib++" or not config.get("HIPATTN_CXX")]
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [[*FLAGS, "-c", str(source), "-o", str(o)] for source, o in objects.items()]
                list(pool.map(run, jobs))
            for library in libraries:
                parts = [str(objects[source]) for source in library.sources]
                links = [str(work / _soname(platform, name)) for name in library.links]
                soname = _soname(platform, library.name)
                where = ["-Wl,-rpath,$ORIGIN", f"-Wl,-soname,{soname}", "-o", str(work / soname)]
                run([*link_flags, *parts, *links, *where, "-lpthread", "-ldl"])
        except FileNotFoundError as error:
            raise PlatformError(f"the C++ compiler {command[0]!r} does not exist") from error
        work.replace(folder)
