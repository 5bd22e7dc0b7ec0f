"""What the fake adds to the publisher's contract: confirmations that a test holds back and gives."""

from legit_embedding.testing.publisher import MemoryPublisher


def named(*names):
    return [{"n": name} for name in names]


async def test_entries_are_on_their_stream_at_once_and_confirmed_when_the_test_says_so():
    async with MemoryPublisher() as publisher:
        publisher.hold()
        waiting = [publisher.submit("answers", named(name)) for name in "abc"]
        assert publisher.streams == {"answers": named("a", "b", "c")}
        assert [each.done() for each in waiting] == [False, False, False]
        publisher.release(2)
        assert [each.done() for each in waiting] == [True, True, False]
        assert repr(publisher) == "<MemoryPublisher 1 entries held, 2 confirmed>"
        publisher.release()
        assert [receipt.stream for receipt in await waiting[2]] == ["answers"]


async def test_releasing_a_number_goes_on_holding_and_releasing_all_does_not():
    async with MemoryPublisher() as publisher:
        publisher.hold()
        publisher.release(5)
        assert not publisher.submit(None, named("a")).done()
        publisher.release()
        assert publisher.submit(None, named("b")).done()


async def test_the_routing_switch_may_be_turned_at_any_time():
    async with MemoryPublisher() as publisher:
        await publisher.submit("answers", named("a"))
        publisher.routing_enabled = False
        await publisher.submit("answers", named("b"))
        assert publisher.streams == {"answers": named("a"), "embeddings:results": named("b")}
