"""What hides a distant server: a batch is written while the next one computes. By order of events, without a clock."""

from legit_embedding.config import load_settings
from legit_embedding.publish.routing import RoutingRules
from legit_embedding.publish.streams import Publisher
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock, settle, until
from legit_embedding.testing.publisher import ScriptedServer
from legit_embedding.testing.reports import NullReporter
from legit_embedding.values import BatchLimits


def publisher_to(server):
    """The real publisher on a server that answers when the test says so."""
    return Publisher(
        settings=load_settings(publish_connections=2),
        url="redis://unused",
        rules=RoutingRules(global_stream="embeddings:results"),
        clock=FakeClock(),
        metrics=Metrics(),
        reporter=NullReporter(),
        connect=server.connect,
    )


async def test_batch_n_is_written_while_batch_n_plus_1_computes(make_rig):
    """A server that holds its answers back stops neither the device nor the next pipeline; only the task waits."""
    server = ScriptedServer()
    texts = [f"text {number}" for number in range(8)]
    async with publisher_to(server) as publisher:
        await settle()
        started = len(server.log)
        server.hold()
        model = {"limits": BatchLimits(4), "prepare_chunk": 8}
        async with make_rig(publisher=publisher, text=model) as rig:
            rig.text.gate.hold()
            task = rig.start({"texts": texts})
            rig.text.gate.release(1)

            await rig.text.gate.wait_for_arrivals(2)
            await until(lambda: len(server.log) > started)
            assert rig.text.batches == [texts[:4], texts[4:]]
            assert [event for event, _ in server.log[started:]] == ["sent"]  # batch 1, while batch 2 is on the device

            rig.text.gate.release()
            await until(lambda: len(server.log) > started + 1)
            assert [event for event, _ in server.log[started:]] == ["sent", "sent"]  # two pipelines under way
            assert [len(pipeline) for pipeline in server.sent[-2:]] == [4, 4]
            assert not task.done()

            server.release()
            assert (await task).ok == 8
    assert len(server.streams["embeddings:results"]) == 8
