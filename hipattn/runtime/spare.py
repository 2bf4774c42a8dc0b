"""Freed memory that stays with its stream for the next buffer of its size.

A driver takes longer to free and to allocate than to launch a kernel.
"""

from __future__ import annotations

import threading

__all__ = ["SpareMemory"]

LARGEST = 4 << 20  # bytes of a piece: work on more takes longer than its allocation
MOST = 16  # pieces


class SpareMemory:
    """The pieces of a stream that nobody owns. What used one comes before what will, in the stream's order.

    For any thread, and for destructors, which may interrupt the thread that is in here: who finds the lock taken goes
    to the driver.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int]] = []  # bytes and address, the oldest first
        self._room = MOST
        self._lock = threading.Lock()

    def put(self, nbytes: int, pointer: int) -> bool:
        """Take over a piece; return whether it was taken."""
        if nbytes > LARGEST or not self._lock.acquire(blocking=False):
            return False
        try:
            if len(self._pieces) >= self._room:
                return False
            self._pieces.append((nbytes, pointer))
            return True
        finally:
            self._lock.release()

    def take(self, nbytes: int) -> int:
        """Return the address of a piece of so many bytes, the caller's from now on. 0: there is none."""
        if not self._pieces or not self._lock.acquire(blocking=False):
            return 0
        try:
            for at in range(len(self._pieces) - 1, -1, -1):
                if self._pieces[at][0] == nbytes:
                    return self._pieces.pop(at)[1]
            return 0
        finally:
            self._lock.release()

    def give_up(self, most: int = 0) -> list[int]:
        """Return the addresses of all pieces but the `most` newest ones, for the caller to free."""
        with self._lock:
            count = max(0, len(self._pieces) - most)
            given, self._pieces = self._pieces[:count], self._pieces[count:]
        return [pointer for _, pointer in given]

    def end(self) -> list[int]:
        """Take no more pieces, and return the addresses of all, for the caller to free."""
        with self._lock:
            self._room = 0
        return self.give_up()
