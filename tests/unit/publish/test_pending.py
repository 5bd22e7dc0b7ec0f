"""The publisher's books: nothing is lost, nothing overtakes, and each waiter gets one outcome."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from redis.exceptions import OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from legit_embedding.errors import ShuttingDownError
from legit_embedding.publish.outcomes import Refused, Trouble
from legit_embedding.publish.pending import Backlog, Entry, Submission, encode_fields, sort_replies
from legit_embedding.testing.clock import settle
from legit_embedding.values import Receipt


class _Future:
    """Enough of a future for the books alone."""

    def done(self):
        return True


def entries_of(*nbytes, stream="results"):
    submission = Submission(_Future(), [None] * len(nbytes), len(nbytes), 0.0)
    return [Entry(stream, (b"n", b"v"), size, submission, index) for index, size in enumerate(nbytes)]


class BacklogMachine(RuleBasedStateMachine):
    """`Backlog` against a plain list and two sums."""

    def __init__(self):
        super().__init__()
        self.backlog = Backlog()
        self.ready = []
        self.taken = []
        self.pending = []

    @rule(sizes=st.lists(st.integers(0, 50), max_size=5))
    def new(self, sizes):
        entries = entries_of(*sizes)
        self.backlog.count_in(entries)
        self.backlog.add(entries)
        self.ready += entries
        self.pending += entries

    @rule(max_entries=st.integers(1, 6), max_bytes=st.integers(0, 120))
    def take(self, max_entries, max_bytes):
        batch = self.backlog.take(max_entries=max_entries, max_bytes=max_bytes)
        assert batch == self.ready[: len(batch)]
        assert len(batch) <= max_entries
        assert len(batch) == 1 or sum(entry.nbytes for entry in batch) <= max_bytes
        rest = self.ready[len(batch) :]
        if rest and len(batch) < max_entries:  # it took as many as fit
            assert batch
            assert sum(entry.nbytes for entry in batch) + rest[0].nbytes > max_bytes
        self.ready = rest
        self.taken += batch

    @rule(count=st.integers(0, 6))
    def put_back(self, count):
        returned, self.taken = self.taken[:count], self.taken[count:]
        self.backlog.put_back(returned)
        self.ready = returned + self.ready

    @rule(count=st.integers(0, 6))
    def add_again(self, count):
        returned, self.taken = self.taken[:count], self.taken[count:]
        self.backlog.add(returned)
        self.ready += returned

    @rule(count=st.integers(0, 6))
    def confirm(self, count):
        for _ in range(min(count, len(self.taken))):
            entry = self.taken.pop()
            self.backlog.count_out(entry)
            self.pending.remove(entry)

    @invariant()
    def the_sums_are_those_of_what_is_not_confirmed(self):
        assert self.backlog.entries == len(self.pending)
        assert self.backlog.nbytes == sum(entry.nbytes for entry in self.pending)


TestBacklog = BacklogMachine.TestCase
TestBacklog.settings = settings(max_examples=60, stateful_step_count=30)


async def test_a_writer_waits_until_an_entry_is_ready():
    backlog = Backlog()
    waiting = asyncio.ensure_future(backlog.wait())
    await settle()
    assert not waiting.done()
    backlog.add(entries_of(1))
    await waiting


async def test_one_entry_wakes_the_writer_that_waited_first_and_no_other():
    backlog = Backlog()
    first, second = asyncio.ensure_future(backlog.wait()), asyncio.ensure_future(backlog.wait())
    await settle()
    backlog.add(entries_of(1))
    await settle()
    assert (first.done(), second.done()) == (True, False)
    backlog.take(max_entries=1, max_bytes=1)
    backlog.add(entries_of(1))
    await second


async def test_what_a_full_pipeline_leaves_wakes_the_next_writer():
    backlog = Backlog()
    first, second = asyncio.ensure_future(backlog.wait()), asyncio.ensure_future(backlog.wait())
    await settle()
    backlog.add(entries_of(1, 1, 1))
    await first
    assert not second.done()
    backlog.take(max_entries=2, max_bytes=100)
    await second


async def test_a_cancelled_writer_does_not_swallow_the_wake_up():
    backlog = Backlog()
    first, second = asyncio.ensure_future(backlog.wait()), asyncio.ensure_future(backlog.wait())
    await settle()
    first.cancel()
    backlog.add(entries_of(1))
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_writer_whose_entries_another_took_waits_again():
    backlog = Backlog()
    waiting = asyncio.ensure_future(backlog.wait())
    await settle()
    backlog.add(entries_of(1))
    backlog.take(max_entries=1, max_bytes=1)
    await settle()
    assert not waiting.done()
    backlog.put_back(entries_of(1))
    await waiting


async def submission(count):
    future = asyncio.get_running_loop().create_future()
    return Submission(future, [None] * count, count, 0.0)


async def test_a_submission_is_done_with_its_last_receipt_whatever_the_order():
    books = await submission(3)
    receipts = [Receipt("s", f"{number}-0") for number in range(3)]
    assert not books.confirm(2, receipts[2])
    assert not books.confirm(0, receipts[0])
    assert not books.future.done()
    assert books.confirm(1, receipts[1])
    assert await books.future == receipts


async def test_a_failed_submission_tells_its_waiter_once_and_a_waiter_that_has_gone_away_nothing():
    books = await submission(1)
    books.fail(ShuttingDownError("stop"))
    books.fail(RuntimeError("later"))
    with pytest.raises(ShuttingDownError, match="stop"):
        await books.future
    gone = await submission(1)
    gone.future.cancel()
    gone.fail(ShuttingDownError("stop"))
    assert gone.confirm(0, Receipt("s", "1-0"))
    assert gone.future.cancelled()


def test_a_redirected_entry_tells_which_name_was_refused():
    (entry,) = entries_of(2, stream="queue")
    entry.redirect("results", rejected_field="rejected_reply_to", rejected="queue")
    assert (entry.stream, entry.fields) == ("results", (b"n", b"v", b"rejected_reply_to", b"queue"))


def test_fields_are_names_and_values_in_turn_and_half_a_surrogate_pair_is_escaped():
    assert encode_fields({"a": "é", "b": "x\ud800"}) == (b"a", "é".encode(), b"b", rb"x\ud800")


@given(st.dictionaries(st.text(), st.text()))
def test_any_text_can_be_written(fields):
    parts = encode_fields(fields)
    assert len(parts) == 2 * len(fields)
    for part, text in zip(parts, (text for pair in fields.items() for text in pair), strict=True):
        assert part.decode("utf-8") == text or max(text) >= "\ud800"


REPLIES = {
    "confirmed": b"17-0",
    "refused": ResponseError("WRONGTYPE Operation against a key"),
    "writes": OutOfMemoryError("command not allowed"),
    "line": RedisTimeoutError("Timeout reading"),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(REPLIES)), st.booleans()), max_size=20))
def test_each_entry_of_a_pipeline_gets_the_one_outcome_that_its_own_reply_says(pipeline):
    """Order is kept, and the books are as they were."""
    batch = [entries_of(1, stream="results" if on_global else "answers")[0] for _, on_global in pipeline]
    found = sort_replies(batch, [REPLIES[kind] for kind, _ in pipeline], global_stream="results")

    def expected(*kinds):
        return [entry for entry, pair in zip(batch, pipeline, strict=True) if pair in kinds]

    assert [entry for entry, _ in found.confirmed] == expected(("confirmed", True), ("confirmed", False))
    assert [entry for entry, _, _ in found.refused] == expected(("refused", False))
    troubled = [(kind, either) for kind in ("writes", "line") for either in (True, False)]
    assert [entry for entry, _, _ in found.troubled] == expected(*troubled, ("refused", True))
    assert all(isinstance(why, Refused) for _, why, _ in found.refused)
    assert all(isinstance(trouble, Trouble) for _, trouble, _ in found.troubled)
    assert all(receipt == Receipt(entry.stream, "17-0") for entry, receipt in found.confirmed)
    assert not any(entry.is_confirmed for entry in batch)


def test_a_reply_too_few_is_a_bug_and_not_a_loss():
    with pytest.raises(ValueError, match="shorter"):
        sort_replies(entries_of(1, 1), [b"1-0"], global_stream="results")
