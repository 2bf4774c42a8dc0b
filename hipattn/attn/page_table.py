"""Which pages of a pool hold which tokens of which sequence: exact accounting on the host, without a device."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hipattn.arguments import integer
from hipattn.errors import ArgumentError, OutOfPagesError

__all__ = ["MAX_PAGE_SIZE", "Copy", "PageTable", "sequence_list"]

MAX_PAGE_SIZE = 256

Copy = tuple[int, int]
"""A shared page, and the page that is to become a sequence's own copy of it."""


@dataclass(slots=True)
class _Sequence:
    pages: array[int] = field(default_factory=lambda: array("i"))
    length: int = 0
    added: int = 0


class PageTable:
    """Sequences of tokens over pages of a fixed size, which sequences may share.

    A page counts the sequences that hold it, and is free when none does. Only the last page of a sequence is ever
    written: where it is partly filled and shared, the sequence gets a copy of its own first (copy-on-write). Every
    method either does all that it says or raises and changes nothing.

    Parameters
    ----------
    pages
        Number of pages, 1 or more.
    page_size
        Tokens of a page, 1 to 256.

    Attributes
    ----------
    pages, page_size : int
    version : int
        Another number after each change.

    Raises
    ------
    ArgumentError
        A size is not accepted.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        self.pages, self.page_size = integer("pages", pages, 1), integer("page_size", page_size, 1)
        if page_size > MAX_PAGE_SIZE:
            raise ArgumentError(f"page_size is {page_size}; it takes 1 to {MAX_PAGE_SIZE} tokens")
        if pages * page_size >= 2**31:
            raise ArgumentError(f"pages is {pages}, of {page_size} tokens each; a pool holds fewer than 2^31 tokens")
        self.version = 0
        self._free = array("i", reversed(range(pages)))  # taken from the end
        self._references = array("i", bytes(4 * pages))
        self._sequences: dict[int, _Sequence] = {}
        self._made = 0

    @property
    def free_pages(self) -> int:
        """How many pages no sequence holds."""
        return len(self._free)

    @property
    def sequences(self) -> tuple[int, ...]:
        """The sequences that were made and not freed, oldest first."""
        return tuple(self._sequences)

    def length(self, sequence: int) -> int:
        """Return how many tokens a sequence holds."""
        return self._find(sequence).length

    def added(self, sequence: int) -> int:
        """Return how many tokens the last `extend` added, 0 if the sequence was changed otherwise since."""
        return self._find(sequence).added

    def pages_of(self, sequence: int) -> array[int]:
        """Return a sequence's pages in order: token t is in slot t % page_size of number t // page_size."""
        return self._find(sequence).pages[:]

    def references(self, page: int) -> int:
        """Return how many sequences hold a page."""
        if integer("page", page) >= self.pages:
            raise ArgumentError(f"page is {page}; the pool has pages 0 to {self.pages - 1}")
        return self._references[page]

    def new(self) -> int:
        """Make an empty sequence and return its number, which no other sequence gets, not even after it is freed."""
        return self._add(_Sequence())

    def pages_needed(self, sequences: Sequence[int], tokens: int | Sequence[int]) -> int:
        """Return how many free pages `extend` would take."""
        copied, grown = self._plan(self._counts(sequences, tokens))
        return len(copied) + sum(grown.values())

    def extend(
        self,
        sequences: Sequence[int],
        tokens: int | Sequence[int],
        copy: Callable[[Sequence[Copy]], None] | None = None,
    ) -> None:
        """Add tokens to the end of sequences.

        Parameters
        ----------
        sequences
            Different ones.
        tokens
            How many each gets: one number for all, or one each.
        copy
            Called with the pages to copy, if there are any, before anything changes: if it raises, nothing does.

        Raises
        ------
        ArgumentError
            A sequence is unknown, freed or given twice, or a number is negative.
        OutOfPagesError
            Too few pages are free.
        """
        counts = self._counts(sequences, tokens)
        copied, grown = self._plan(counts)
        need = len(copied) + sum(grown.values())
        if need > self.free_pages:
            raise OutOfPagesError(
                f"{sum(counts.values())} more tokens in {len(counts)} sequences need {need} pages of {self.page_size}; "
                f"{self.free_pages} of {self.pages} are free (free or evict sequences, or make a cache of more pages)"
            )
        left = self.free_pages - need
        taken = self._free[left:]
        copies = [(page, taken.pop()) for page in copied.values()]
        if copies and copy is not None:
            copy(copies)
        for sequence, (page, own) in zip(copied, copies, strict=True):
            self._sequences[sequence].pages[-1] = own
            self._references[page] -= 1
            self._references[own] = 1
        for sequence, count in grown.items():
            for _ in range(count):
                page = taken.pop()
                self._references[page] = 1
                self._sequences[sequence].pages.append(page)
        del self._free[left:]
        for sequence, count in counts.items():
            held = self._sequences[sequence]
            held.length += count
            held.added = count
        self.version += 1

    def fork(self, sequence: int, length: int | None = None) -> int:
        """Make a sequence that begins with the first `length` tokens of another (default: all), and share their pages.

        Raises
        ------
        ArgumentError
            The sequence is unknown or freed, or has fewer tokens.
        """
        parent = self._find(sequence)
        length = parent.length if length is None else self._within(sequence, length)
        pages = parent.pages[: self._pages(length)]
        for page in pages:
            self._references[page] += 1
        return self._add(_Sequence(pages, length))

    def truncate(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens from `length` on.

        Raises
        ------
        ArgumentError
            The sequence is unknown or freed, or has fewer tokens.
        """
        held = self._find(sequence)
        length = self._within(sequence, length)
        kept = self._pages(length)
        self._release(held.pages[kept:])
        del held.pages[kept:]
        held.length, held.added = length, 0
        self.version += 1

    def free(self, sequence: int) -> None:
        """Forget a sequence.

        Raises
        ------
        ArgumentError
            It is unknown or already freed.
        """
        self._release(self._find(sequence).pages)
        del self._sequences[sequence]
        self.version += 1

    def evict(self, pages: int, sequences: Sequence[int]) -> tuple[int, ...]:
        """Free sequences, in the order given, until `pages` pages are free; return those that were freed.

        Which to give up first is the caller's to say: the least recently used prefixes, the youngest requests.

        Raises
        ------
        ArgumentError
            A sequence is unknown, freed or given twice.
        OutOfPagesError
            Freeing them all would not be enough; none is freed.
        """
        integer("pages", pages)
        candidates = self._distinct(sequences)
        free, held, count = self.free_pages, Counter[int](), 0
        for sequence in candidates:
            if free >= pages:
                break
            for page in self._sequences[sequence].pages:
                held[page] += 1
                free += held[page] == self._references[page]
            count += 1
        if free < pages:
            raise OutOfPagesError(
                f"{pages} free pages are asked for; {self.free_pages} of {self.pages} are free, and {free} would be "
                f"without these {len(candidates)} sequences"
            )
        for sequence in candidates[:count]:
            self.free(sequence)
        return candidates[:count]

    def _add(self, sequence: _Sequence) -> int:
        number = self._made
        self._sequences[number] = sequence
        self._made += 1
        self.version += 1
        return number

    def _find(self, sequence: int) -> _Sequence:
        found = self._sequences.get(integer("sequence", sequence))
        if found is None:
            what = "was freed" if sequence < self._made else "was never made"
            raise ArgumentError(f"sequence is {sequence}, which {what}; it takes one that new or fork returned")
        return found

    def _within(self, sequence: int, length: int) -> int:
        length, held = integer("length", length), self._sequences[sequence].length
        if length > held:
            raise ArgumentError(f"length is {length}; sequence {sequence} holds {held} tokens")
        return length

    def _distinct(self, sequences: Sequence[int]) -> tuple[int, ...]:
        numbers = tuple(integer("sequence", sequence) for sequence in sequence_list(sequences))
        for sequence in numbers:
            self._find(sequence)
        if len(set(numbers)) < len(numbers):
            raise ArgumentError(f"sequences are {numbers}; it takes each once")
        return numbers

    def _counts(self, sequences: Sequence[int], tokens: int | Sequence[int]) -> dict[int, int]:
        numbers = self._distinct(sequences)
        each = tuple(tokens) if isinstance(tokens, Iterable) else (tokens,) * len(numbers)
        if len(each) != len(numbers):
            raise ArgumentError(f"tokens has {len(each)} numbers; it takes one for each of {len(numbers)} sequences")
        return {sequence: integer("tokens", count) for sequence, count in zip(numbers, each, strict=True)}

    def _plan(self, counts: dict[int, int]) -> tuple[dict[int, int], dict[int, int]]:
        """Return the page that each sequence must copy, and the number of pages that each grows by."""
        copied, grown, writers = dict[int, int](), dict[int, int](), Counter[int]()
        for sequence, count in counts.items():
            held = self._sequences[sequence]
            if count and held.length % self.page_size:
                page = held.pages[-1]
                writers[page] += 1
                if writers[page] < self._references[page]:  # the last of all that hold it may write to it
                    copied[sequence] = page
            grown[sequence] = self._pages(held.length + count) - len(held.pages)
        return copied, grown

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)

    def __repr__(self) -> str:
        count = len(self._sequences)
        return f"<PageTable {count} sequences, {self.free_pages} of {self.pages} pages of {self.page_size} tokens free>"


def sequence_list(sequences: Sequence[int]) -> tuple[int, ...]:
    """Return a list of sequences. Whether they are a cache's is not checked.

    Raises
    ------
    ArgumentError
        It is no list of numbers.
    """
    try:
        listed = tuple(sequences)
        hash(listed)
    except TypeError:
        raise ArgumentError(f"sequences is {sequences!r}; it takes a list of what new or fork returned") from None
    return listed
