"""Compiled code objects on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

from hipattn import config

__all__ = ["DiskCache"]

log = logging.getLogger("hipattn")

_MAGIC = b"hipattn1"
_DIGEST_BYTES = 32
_NEW = ".new-"  # how a file's name begins while it is written


class DiskCache:
    """Bytes by key, in one folder. A file holds its own hash, so that a damaged one is noticed and left out.

    Writes are atomic, so processes that write the same key at once harm nothing: the bytes are the same. A cache
    that cannot be written (read-only home, full disk) costs time, not correctness: it warns once.

    Parameters
    ----------
    folder
        Default: "kernels" in hipattn's cache directory.
    """

    _warned = False

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or config.cache_dir() / "kernels"

    @staticmethod
    def key(*parts: str) -> str:
        """Return the key for everything that a result depends on."""
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def get(self, key: str) -> bytes | None:
        """Return what was put under `key`, or None if there is nothing or it is damaged."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + _DIGEST_BYTES
        body = data[head:]
        if data[:head] != _MAGIC + hashlib.sha256(body).digest():
            log.warning("%s is damaged; compiling again", self._path(key))
            return None
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep `body` under `key`."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_NEW)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_MAGIC + hashlib.sha256(body).digest() + body)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            if not DiskCache._warned:
                DiskCache._warned = True
                log.warning("compiled kernels are not kept: %s", error)

    def files(self) -> list[Path]:
        """Return the files that hold what was put here."""
        return sorted(path for path in self.folder.glob("??/*") if not path.name.startswith(_NEW))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]
