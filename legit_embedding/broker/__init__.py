"""A Redis transport for kombu that does not wait: many messages a round trip, nothing popped and unrecorded.

And one for AMQP, which waits for nothing anyway: it reads as much as has come.

    from legit_embedding import broker
    broker.install()

turns them on for every `redis://`, `rediss://`, `sentinel://`, `amqp://` and `amqps://` URL of this process; see
docs/broker.md.
"""

from legit_embedding.broker.register import install, outlives_connections, uninstall

__all__ = ["install", "outlives_connections", "uninstall"]
