"""What everybody may rely on of a publisher: the same tests on the shipped fake, and on the real one with a server."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from legit_embedding.clock import SystemClock
from legit_embedding.config import load_settings
from legit_embedding.errors import ShuttingDownError
from legit_embedding.publish.pending import held_nbytes
from legit_embedding.publish.routing import MAX_NAME_BYTES, RoutingRules
from legit_embedding.publish.streams import Publisher, PublisherStatistics
from legit_embedding.publish.switch import FixedRouting
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import settle
from legit_embedding.testing.publisher import MemoryPublisher
from legit_embedding.testing.reports import NullReporter
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.values import Receipt

RULES = RoutingRules(global_stream="results", queues=frozenset({"work"}))


class OnMemory:
    """The fake."""

    @asynccontextmanager
    async def open(self, *, routing_enabled=True, room_bytes=1 << 20, rejected_field="rejected_reply_to"):
        async with MemoryPublisher(
            rules=RULES,
            routing_enabled=routing_enabled,
            pending_results_bytes=room_bytes,
            rejected_field=rejected_field,
        ) as self._publisher:
            yield self._publisher

    def hold(self):
        self._publisher.hold()

    def release(self):
        self._publisher.release()

    def read(self, stream):
        return self._publisher.streams[stream]


class OnServer:
    """The real one; its server is held by stopping its process."""

    def __init__(self, server: EmbeddedServer):
        self._server = server
        with redis.Redis.from_url(server.url()) as connection:
            connection.flushall()

    @asynccontextmanager
    async def open(
        self, *, routing_enabled=True, room_bytes=1 << 20, rejected_field="rejected_reply_to"
    ) -> AsyncIterator[Publisher]:
        publisher = Publisher(
            settings=load_settings(pending_results_bytes=room_bytes, publish_timeout_s=60.0),
            url=self._server.url(),
            rules=RULES,
            clock=SystemClock(),
            metrics=Metrics(),
            reporter=NullReporter(),
            routing=FixedRouting(enabled=routing_enabled),
            rejected_field=rejected_field,
            close_timeout_s=0.1,
        )
        async with publisher:
            await publisher.wait_for_room()
            yield publisher

    def hold(self):
        self._server.pause()

    def release(self):
        self._server.resume()

    def read(self, stream):
        with redis.Redis.from_url(self._server.url(), decode_responses=True) as connection:
            return [fields for _, fields in connection.xrange(stream)]


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as shared:
        yield shared


@pytest.fixture(params=["MemoryPublisher", "Publisher"])
def subject(request):
    """Opens publishers, holds their confirmations back, and reads what they wrote."""
    if request.param == "MemoryPublisher":
        yield OnMemory()
        return
    server = request.getfixturevalue("server")
    yield OnServer(server)
    server.resume()


def named(*names):
    return [{"n": name} for name in names]


def nbytes(name):
    """What an entry of that name counts."""
    return held_nbytes([b"n", name.encode()])


def names_on(subject, stream):
    return [entry["n"] for entry in subject.read(stream)]


async def test_receipts_come_in_the_order_of_the_entries(subject):
    async with subject.open() as publisher:
        receipts = await publisher.submit(None, named(*map(str, range(600))))
        assert [receipt.stream for receipt in receipts] == ["results"] * 600
        ids = [tuple(map(int, receipt.entry_id.split("-"))) for receipt in receipts]
        assert len(set(ids)) == 600
        assert set(names_on(subject, "results")) == set(map(str, range(600)))


async def test_entries_of_one_submission_that_fit_a_pipeline_stand_in_order(subject):
    async with subject.open() as publisher:
        receipts = await publisher.submit(None, named(*"abcdef"))
        assert names_on(subject, "results") == list("abcdef")
        ids = [tuple(map(int, receipt.entry_id.split("-"))) for receipt in receipts]
        assert ids == sorted(ids)


async def test_a_task_that_is_given_up_is_buried_among_the_dead_letters(subject):
    async with subject.open() as publisher:
        (receipt,) = await publisher.bury({"n": "a"})
        assert receipt.stream == RULES.dead_letter_stream
        assert names_on(subject, RULES.dead_letter_stream) == ["a"]


async def test_each_submission_gets_its_own_receipts(subject):
    async with subject.open() as publisher:
        found = await asyncio.gather(*(publisher.submit(f"answers:{n % 3}", named(str(n), str(n))) for n in range(30)))
        assert [[receipt.stream for receipt in receipts] for receipts in found] == [
            [f"answers:{n % 3}"] * 2 for n in range(30)
        ]
        everything = [receipt for receipts in found for receipt in receipts]
        assert len(set(everything)) == 60


@pytest.mark.parametrize("reply_to", [None, "", "results"])
async def test_without_a_name_of_its_own_a_task_gets_the_global_stream(subject, reply_to):
    async with subject.open() as publisher:
        (receipt,) = await publisher.submit(reply_to, named("a"))
        assert receipt.stream == "results"
        assert subject.read("results") == [{"n": "a"}]


async def test_results_go_to_the_stream_that_the_task_names(subject):
    async with subject.open() as publisher:
        (receipt,) = await publisher.submit("answers", named("a"))
        assert isinstance(receipt, Receipt)
        assert receipt.stream == "answers"
        assert (subject.read("answers"), subject.read("results")) == ([{"n": "a"}], [])


@pytest.mark.parametrize("reply_to", ["work", "unacked", "_kombu.binding.x", "legit:stats", "embeddings:dead", "a\n"])
async def test_a_name_that_may_not_be_used_is_noted_on_the_global_stream(subject, reply_to):
    async with subject.open() as publisher:
        receipts = await publisher.submit(reply_to, named("a", "b"))
        assert [receipt.stream for receipt in receipts] == ["results", "results"]
        assert subject.read("results") == [{"n": name, "rejected_reply_to": reply_to} for name in "ab"]
        assert subject.read(reply_to) == []
        assert publisher.statistics().rejected == 2


async def test_a_name_that_is_too_long_is_noted_shortened(subject):
    async with subject.open() as publisher:
        await publisher.submit("x" * 5000, named("a"))
        assert subject.read("results") == [{"n": "a", "rejected_reply_to": "x" * MAX_NAME_BYTES}]


async def test_the_field_that_notes_it_may_be_renamed(subject):
    async with subject.open(rejected_field="misdirected") as publisher:
        await publisher.submit("unacked", named("a"))
        assert subject.read("results") == [{"n": "a", "misdirected": "unacked"}]


@pytest.mark.parametrize("reply_to", ["answers", "unacked"])
async def test_with_routing_off_everything_goes_to_the_global_stream(subject, reply_to):
    async with subject.open(routing_enabled=False) as publisher:
        await publisher.submit(reply_to, named("a"))
        assert subject.read("results") == [{"n": "a"}]
        assert publisher.statistics().rejected == 0


@pytest.mark.parametrize(
    ("text", "stands"), [("Grüße 🙂", "Grüße 🙂"), ("", ""), ("a\x00b\r\nc", "a\x00b\r\nc"), ("x\ud800", "x\\ud800")]
)
async def test_any_text_is_written_and_what_utf8_cannot_hold_as_its_escape(subject, text, stands):
    async with subject.open() as publisher:
        await publisher.submit(None, [{"n": text, text or "-": "v"}])
        assert subject.read("results") == [{"n": stands, stands or "-": "v"}]


async def test_a_submission_of_nothing_is_done_at_once(subject):
    async with subject.open() as publisher:
        subject.hold()
        publisher.submit(None, named("a"))
        assert publisher.submit(None, []).result() == []
        subject.release()


async def test_a_submission_waits_for_all_its_confirmations(subject):
    async with subject.open() as publisher:
        subject.hold()
        waiting = publisher.submit(None, named("a", "bc"))
        await settle()
        assert not waiting.done()
        held = publisher.statistics()
        assert (held.pending_entries, held.pending_bytes, held.confirmed) == (2, nbytes("a") + nbytes("bc"), 0)
        subject.release()
        assert len(await waiting) == 2
        done = publisher.statistics()
        assert (done.pending_entries, done.pending_bytes, done.confirmed) == (0, 0, 2)


async def test_there_is_room_until_as_many_bytes_are_pending(subject):
    async with subject.open(room_bytes=2 * nbytes("ab")) as publisher:
        await publisher.wait_for_room()
        subject.hold()
        first = publisher.submit(None, named("ab"))
        await publisher.wait_for_room()
        second = publisher.submit(None, named("cd"))
        room = [asyncio.ensure_future(publisher.wait_for_room()) for _ in range(3)]
        await settle()
        assert [each.done() for each in room] == [False] * 3
        third = publisher.submit(None, named("ef"))  # taken all the same: nothing that is finished is turned away
        subject.release()
        await asyncio.gather(first, second, third, *room)


async def test_a_cancelled_waiter_changes_nothing_for_its_entries(subject):
    async with subject.open() as publisher:
        subject.hold()
        waiting = publisher.submit("answers", named("a"))
        other = publisher.submit("answers", named("b"))
        waiting.cancel()
        subject.release()
        await other
        assert names_on(subject, "answers") == ["a", "b"]
        assert publisher.statistics().pending_entries == 0
        assert publisher.statistics().confirmed == 2


async def test_a_cancelled_wait_for_room_leaves_the_others_waiting(subject):
    async with subject.open(room_bytes=1) as publisher:
        subject.hold()
        waiting = publisher.submit(None, named("a"))
        first, second = (asyncio.ensure_future(publisher.wait_for_room()) for _ in range(2))
        await settle()
        first.cancel()
        subject.release()
        await asyncio.gather(waiting, second)
        assert first.cancelled()


async def test_whoever_waits_when_it_closes_learns_that_the_worker_stops(subject, caplog):
    async with subject.open(room_bytes=1) as publisher:
        subject.hold()
        waiting = publisher.submit(None, named("a"))
        forgotten = publisher.submit(None, named("b"))
        gone = publisher.submit(None, named("c"))
        gone.cancel()
        room = asyncio.ensure_future(publisher.wait_for_room())
        await settle()
        await publisher.close()
        for each in (waiting, room):
            with pytest.raises(ShuttingDownError):
                await each
        assert gone.cancelled()
        del forgotten
        gc.collect()
        assert not [record for record in caplog.records if record.name == "asyncio"]  # nobody asked, nobody complains
        subject.release()


async def test_after_close_everything_is_refused_and_a_second_close_does_nothing(subject):
    async with subject.open() as publisher:
        await publisher.submit(None, named("a"))
        await publisher.close()
        await publisher.close()
        for entries in (named("b"), []):
            with pytest.raises(ShuttingDownError):
                await publisher.submit(None, entries)
        with pytest.raises(ShuttingDownError):
            await publisher.wait_for_room()
        assert names_on(subject, "results") == ["a"]


async def test_what_was_confirmed_before_it_closes_stays_confirmed(subject):
    async with subject.open() as publisher:
        waiting = publisher.submit(None, named("a"))
        await waiting
    assert len(waiting.result()) == 1
    assert publisher.statistics() == PublisherStatistics(
        pending_entries=0, pending_bytes=0, pipelines=0, confirmed=1, retried=0, rejected=0, trouble=None
    )


async def test_its_repr_shows_what_is_pending_and_confirmed(subject):
    async with subject.open() as publisher:
        await publisher.submit(None, named("a"))
        assert "0 entries" in repr(publisher)
        assert "1 confirmed" in repr(publisher)
