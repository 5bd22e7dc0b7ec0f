"""A task's books: each item one outcome, each outcome one entry, each entry one confirmation."""

import asyncio

import numpy as np
import pytest

from legit_embedding.contract import EntryTemplate, Names
from legit_embedding.errors import InternalError, ShuttingDownError, UndecodableError
from legit_embedding.ledger import Ledger, summarise
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock, settle
from legit_embedding.testing.model import FakeModel
from legit_embedding.testing.publisher import MemoryPublisher
from legit_embedding.values import Delivery, Envelope, Item, Receipt, TextSource

STREAM = "replies"


class Books:
    """A ledger of `count` items and where its entries go."""

    def __init__(self, count):
        self.items = [Item(index=n, id=f"id{n}", source=TextSource("text")) for n in range(count)]
        self.publisher = MemoryPublisher()
        self.metrics = Metrics()
        envelope = Envelope(kind="texts", items=tuple(self.items), reply_to=STREAM, model="minilm")
        template = EntryTemplate.create(Names.load(None), Delivery("t1"), worker="w", modality="text")
        self.ledger = Ledger(
            envelope,
            template=template.with_envelope(envelope),
            publisher=self.publisher,
            clock=FakeClock(),
            metrics=self.metrics,
        )

    @property
    def written(self):
        return [(int(entry["index"]), entry["status"]) for entry in self.publisher.streams[STREAM]]


def vector():
    return np.ones(4, np.float32)


async def test_an_outcome_is_written_at_once():
    books = Books(2)
    books.ledger.settle([(books.items[1], vector())])
    assert books.written == [(1, "ok")]
    assert repr(books.ledger) == "<Ledger 1 of 2 items open>"


async def test_the_first_outcome_of_an_item_stays():
    books = Books(1)
    books.ledger.settle([(books.items[0], vector())])
    assert books.ledger.settle([(books.items[0], InternalError("too late"))]) is None
    assert books.written == [(0, "ok")]


async def test_settling_nothing_writes_nothing():
    books = Books(1)
    assert books.ledger.settle([]) is None
    assert books.written == []


async def test_the_rest_is_whoever_has_no_outcome_yet():
    books = Books(3)
    books.ledger.settle([(books.items[1], vector())])
    await books.ledger.settle_rest(InternalError("a bug"))
    assert sorted(books.written) == [(0, "error"), (1, "ok"), (2, "error")]
    await books.ledger.settle_rest(InternalError("another one"))
    assert len(books.written) == 3


async def test_where_one_entry_cannot_be_made_none_of_them_is_booked():
    """Its neighbours can still be settled: nothing was lost half-way."""
    books = Books(3)
    with pytest.raises(ValueError, match="shape"):
        books.ledger.settle([(books.items[0], vector()), (books.items[1], np.ones((2, 2), np.float32))])
    assert books.written == []
    await books.ledger.settle_rest(InternalError("a bug"))
    assert books.written == [(0, "error"), (1, "error"), (2, "error")]


async def test_what_the_publisher_does_not_take_is_not_booked(monkeypatch):
    books = Books(1)

    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(books.publisher, "submit", fail)
        with pytest.raises(ZeroDivisionError):
            books.ledger.settle([(books.items[0], vector())])
    assert repr(books.ledger) == "<Ledger 1 of 1 items open>"
    await books.ledger.settle_rest(InternalError("a bug"))
    assert books.written == [(0, "error")]


async def test_closing_waits_for_every_confirmation():
    books = Books(2)
    books.publisher.hold()
    for item in books.items:
        books.ledger.settle([(item, vector())])
    closing = asyncio.create_task(books.ledger.close("b1"))
    await settle()
    books.publisher.release(1)
    await settle()
    assert not closing.done()
    books.publisher.release()
    summary = await closing
    assert (summary.batch_id, summary.stream, summary.ok, summary.errors) == ("b1", STREAM, 2, 0)


async def test_closing_a_publisher_first_is_told():
    books = Books(1)
    books.publisher.hold()
    books.ledger.settle([(books.items[0], vector())])
    closing = asyncio.create_task(books.ledger.close("b1"))
    await settle()
    await books.publisher.close()
    with pytest.raises(ShuttingDownError):
        await closing


async def test_outcomes_are_counted_by_kind_and_by_the_model_once_there_is_one():
    """Never by the name that a task asks for: each new name would be a new time series for ever."""
    books, model = Books(3), FakeModel(name="small")
    books.ledger.settle([(books.items[0], UndecodableError("no image"))])
    books.ledger.use_model(model.info, "fingerprint")
    books.ledger.settle([(books.items[1], vector())])
    await books.ledger.settle_rest(InternalError("a bug"))
    summary = await books.ledger.close("b1")
    assert (summary.count, summary.ok, summary.errors) == (3, 1, 2)
    samples = [
        s for metric in books.metrics.registry.collect() for s in metric.samples if s.name == "legit_items_total"
    ]
    counted = {(sample.labels["model"], sample.labels["outcome"]): sample.value for sample in samples}
    assert counted == {("none", "undecodable"): 1, ("small", "ok"): 1, ("small", "internal"): 1}


def test_a_summary_names_the_first_and_the_last_entry():
    receipts = [Receipt("s", "1-0"), Receipt("s", "2-5")]
    summary = summarise("b", receipts, ok=1, errors=1)
    assert (summary.stream, summary.count, summary.first_entry, summary.last_entry) == ("s", 2, "1-0", "2-5")


def test_a_summary_of_nothing_names_nothing():
    summary = summarise("b", [], ok=0, errors=0)
    assert (summary.stream, summary.first_entry, summary.last_entry) == ("", None, None)


async def test_entries_are_ordered_by_their_ids_as_numbers():
    """`10-0` comes after `9-0`, which text would put the other way round."""
    books = Books(12)
    for item in books.items:
        books.ledger.settle([(item, vector())])
    summary = await books.ledger.close("b")
    assert (summary.first_entry, summary.last_entry) == ("1-0", "12-0")
