"""A Redis transport for kombu that does not wait: many messages a round trip, nothing popped and unrecorded.

    from legit_embedding import broker
    broker.install()

turns it on for every `redis://`, `rediss://` and `sentinel://` URL of this process; see docs/broker.md.
"""

from legit_embedding.broker.register import install, outlives_connections, uninstall

__all__ = ["install", "outlives_connections", "uninstall"]
