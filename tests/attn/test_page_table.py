"""PageTable against a model that keeps every token of every sequence and every slot of every page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hipattn.attn.page_table import Copy, PageTable
from hipattn.errors import ArgumentError, OutOfPagesError


class CopyError(Exception):
    """What a copy on the device may raise."""


def state(table: PageTable) -> Any:
    """Return all that can be asked of a table."""
    sequences = {s: (table.length(s), table.added(s), table.pages_of(s)) for s in table.sequences}
    return sequences, table.free_pages, [table.references(page) for page in range(table.pages)], table.version


class Machine(RuleBasedStateMachine):
    """Tokens are numbers that never repeat; `slots` is what a device's pool would hold, `held` what sequences should.

    Nothing here counts references or pages: what is shared or lost wrongly shows as a token that is not there.
    """

    @initialize(pages=st.integers(1, 12), page_size=st.sampled_from([1, 2, 3, 8]))
    def make(self, pages: int, page_size: int) -> None:
        self.table = PageTable(pages, page_size)
        self.slots: list[list[int | None]] = [[None] * page_size for _ in range(pages)]
        self.held: dict[int, list[int]] = {}
        self.freed: list[int] = []
        self.token = 0

    def some(self, data: st.DataObject, *, least: int = 1) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=least, max_size=4, unique=True))

    @rule()
    def new(self) -> None:
        sequence = self.table.new()
        assert sequence not in self.held
        assert sequence not in self.freed
        self.held[sequence] = []

    def copy(self, copies: Sequence[Copy]) -> None:
        free = self.free()
        for page, own in copies:
            assert own in free, "a copy goes to a page that was free"
            self.slots[own] = self.slots[page][:]
        assert len({own for _, own in copies}) == len(copies)

    def free(self) -> set[int]:
        return set(range(self.table.pages)) - {page for s in self.held for page in self.table.pages_of(s)}

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def extend_some(self, data: st.DataObject) -> None:
        sequences = self.some(data)
        self.extend(sequences, [data.draw(st.integers(0, 2 * self.table.page_size)) for _ in sequences])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def extend_all(self, data: st.DataObject) -> None:
        sequences = data.draw(st.permutations(sorted(self.held)))
        self.extend(sequences, [1] * len(sequences))

    def extend(self, sequences: list[int], counts: list[int]) -> None:
        before, need = state(self.table), self.table.pages_needed(sequences, counts)
        if need > self.table.free_pages:
            with pytest.raises(OutOfPagesError):
                self.table.extend(sequences, counts, self.copy)
            assert state(self.table) == before
            return
        free = self.table.free_pages
        self.table.extend(sequences, counts, self.copy)
        assert self.table.free_pages == free - need
        for sequence, count in zip(sequences, counts, strict=True):
            pages = self.table.pages_of(sequence)
            for _ in range(count):
                at = len(self.held[sequence])
                self.slots[pages[at // self.table.page_size]][at % self.table.page_size] = self.token
                self.held[sequence].append(self.token)
                self.token += 1
            assert self.table.added(sequence) == count

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_copy_fails(self, data: st.DataObject) -> None:
        sequences, before = self.some(data), state(self.table)
        if self.table.pages_needed(sequences, 1) > self.table.free_pages:
            return
        called = []

        def fails(copies: Sequence[Copy]) -> None:
            called.append(copies)
            raise CopyError

        try:
            self.table.extend(sequences, 1, fails)
        except CopyError:
            assert state(self.table) == before
        else:
            assert not called
            for sequence in sequences:
                self.table.truncate(sequence, len(self.held[sequence]))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        (parent,) = self.some(data)[:1]
        length = data.draw(st.none() | st.integers(0, len(self.held[parent])))
        free = self.table.free_pages
        self.held[self.table.fork(parent, length)] = self.held[parent][:length]
        assert self.table.free_pages == free

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        (sequence,) = self.some(data)[:1]
        length = data.draw(st.integers(0, len(self.held[sequence])))
        self.table.truncate(sequence, length)
        del self.held[sequence][length:]
        assert self.table.added(sequence) == 0

    def forget(self, sequence: int) -> None:
        del self.held[sequence]
        self.freed.append(sequence)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free_one(self, data: st.DataObject) -> None:
        (sequence,) = self.some(data)[:1]
        self.table.free(sequence)
        self.forget(sequence)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), pages=st.integers(0, 12))
    def evict(self, data: st.DataObject, pages: int) -> None:
        sequences, before = self.some(data), state(self.table)
        try:
            evicted = self.table.evict(pages, sequences)
        except OutOfPagesError:
            assert state(self.table) == before
            rest = {page for s in set(self.held) - set(sequences) for page in self.table.pages_of(s)}
            assert self.table.pages - len(rest) < pages, "there would have been enough"
            return
        assert evicted == tuple(sequences[: len(evicted)])
        assert self.table.free_pages >= pages
        free_before = before[1]
        if evicted:
            assert free_before < pages, "nothing had to be evicted"
        for sequence in evicted:
            self.forget(sequence)

    @precondition(lambda self: self.freed)
    @rule(data=st.data())
    def a_freed_sequence_is_refused(self, data: st.DataObject) -> None:
        sequence, before = data.draw(st.sampled_from(self.freed)), state(self.table)
        others = self.some(data, least=0) if self.held else []
        for call in calls(self.table, sequence, others):
            with pytest.raises(ArgumentError, match=f"sequence is {sequence}, which was freed"):
                call()
        assert state(self.table) == before

    @invariant()
    def every_sequence_reads_what_it_wrote(self) -> None:
        if not hasattr(self, "table"):
            return
        assert self.table.sequences == tuple(self.held)
        size = self.table.page_size
        for sequence, tokens in self.held.items():
            pages = self.table.pages_of(sequence)
            assert self.table.length(sequence) == len(tokens)
            assert len(pages) == -(-len(tokens) // size), "a page that holds no token is held"
            assert [self.slots[pages[at // size]][at % size] for at in range(len(tokens))] == tokens

    @invariant()
    def pages_are_counted_exactly(self) -> None:
        if not hasattr(self, "table"):
            return
        holders = Counter(page for sequence in self.held for page in self.table.pages_of(sequence))
        assert [self.table.references(page) for page in range(self.table.pages)] == [
            holders[page] for page in range(self.table.pages)
        ]
        assert self.table.free_pages == self.table.pages - len(holders)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40)


def calls(table: PageTable, sequence: int, others: Sequence[int] = ()) -> list[Callable[[], Any]]:
    return [
        lambda: table.length(sequence),
        lambda: table.added(sequence),
        lambda: table.pages_of(sequence),
        lambda: table.fork(sequence),
        lambda: table.truncate(sequence, 0),
        lambda: table.free(sequence),
        lambda: table.extend([*others, sequence], 1),
        lambda: table.pages_needed([*others, sequence], 1),
        lambda: table.evict(table.pages, [*others, sequence]),
    ]


@pytest.mark.parametrize(
    ("pages", "page_size", "message"),
    [
        (0, 16, "pages is 0"),
        (-1, 16, "pages is -1"),
        (4, 0, "page_size is 0"),
        (4, 257, "page_size is 257; it takes 1 to 256"),
        (4, 2.0, "page_size is 2.0"),
        (2**31 // 256, 256, r"fewer than 2\^31 tokens"),
    ],
)
def test_sizes_that_are_refused(pages: Any, page_size: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PageTable(pages, page_size)


def test_an_unknown_sequence_is_refused() -> None:
    table = PageTable(4, 2)
    one = table.new()
    for unknown in (one + 1, 10**9):
        for call in calls(table, unknown, [one]):
            with pytest.raises(ArgumentError, match=f"sequence is {unknown}, which was never made"):
                call()
    for call in calls(table, -1, [one]) + calls(table, None, [one]):  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="sequence is "):
            call()
    assert table.sequences == (one,)
    assert table.length(one) == 0


def test_what_else_is_refused() -> None:
    table = PageTable(4, 2)
    one, two = table.new(), table.new()
    table.extend([one], 3)
    before = state(table)
    for call, message in (
        (lambda: table.extend([one, one], 1), "sequences are .*; it takes each once"),
        (lambda: table.evict(4, [one, one]), "sequences are .*; it takes each once"),
        (lambda: table.extend([one, two], [1]), "tokens has 1 numbers; it takes one for each of 2"),
        (lambda: table.extend([one, two], [1, -1]), "tokens is -1"),
        (lambda: table.extend([one], 1.5), "tokens is 1.5"),  # type: ignore[arg-type]
        (lambda: table.fork(one, 4), "length is 4; sequence 0 holds 3"),
        (lambda: table.truncate(one, 4), "length is 4; sequence 0 holds 3"),
        (lambda: table.truncate(one, -1), "length is -1"),
        (lambda: table.evict(-1, [one]), "pages is -1"),
        (lambda: table.references(4), "page is 4; the pool has pages 0 to 3"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
        assert state(table) == before


def test_out_of_pages_says_what_is_needed() -> None:
    table = PageTable(3, 4)
    one = table.new()
    table.extend([one], 6)
    two = table.fork(one)
    with pytest.raises(OutOfPagesError, match="10 more tokens in 2 sequences need 3 pages of 4; 1 of 3 are free"):
        table.extend([one, two], 5)
    table.extend([two], 1)  # the copy is the last page
    with pytest.raises(OutOfPagesError, match="4 free pages are asked for; 0 of 3 are free, and 3 would be"):
        table.evict(4, [one, two])


def test_of_all_that_share_a_page_the_last_writes_to_it() -> None:
    table = PageTable(8, 4)
    one = table.new()
    table.extend([one], 6)
    shared = table.pages_of(one)[1]
    forks = [table.fork(one) for _ in range(2)]
    copies: list[Copy] = []
    table.extend([one, *forks], 1, copies.extend)
    assert [page for page, _ in copies] == [shared] * 2
    last = [table.pages_of(sequence)[1] for sequence in (one, *forks)]
    assert last == [own for _, own in copies] + [shared]
    assert table.free_pages == 8 - 4


def test_nothing_added_takes_nothing() -> None:
    table = PageTable(2, 4)
    one = table.new()
    table.extend([one], 6)
    two = table.fork(one)
    table.extend([one, two], 0, lambda copies: pytest.fail(f"copies {copies}"))
    assert table.pages_of(one) == table.pages_of(two)


def test_a_full_page_stays_shared() -> None:
    table = PageTable(4, 4)
    one = table.new()
    table.extend([one], 8)
    two = table.fork(one)
    three = table.fork(one, 4)
    table.extend([two, three], 1, lambda copies: pytest.fail(f"copies {copies}"))
    assert table.pages_of(two)[:2] == table.pages_of(one)
    assert table.pages_of(three)[:1] == table.pages_of(one)[:1]
    assert table.free_pages == 0
