"""Makes kombu take these transports for Redis' and AMQP's URLs.

By the scheme's alias: `Connection.switch`, which goes from one of several URLs to the next, looks there again, and
would fall back to the stock transport if an app named ours by its path.
"""

from typing import Any

from kombu import transport

ALIASES = {
    "redis": "legit_embedding.broker.transport:Transport",
    "rediss": "legit_embedding.broker.transport:Transport",
    "sentinel": "legit_embedding.broker.transport:SentinelTransport",
    "amqp": "legit_embedding.broker.amqp:Transport",
    "amqps": "legit_embedding.broker.amqp:SSLTransport",
    "pyamqp": "legit_embedding.broker.amqp:Transport",
}

_stock = {scheme: transport.TRANSPORT_ALIASES[scheme] for scheme in ALIASES}


def install() -> None:
    """For every connection that this process makes from now on; a second call does nothing."""
    _point_to(ALIASES)


def uninstall() -> None:
    """Back to kombu's own."""
    _point_to(_stock)


def outlives_connections(app: Any) -> bool:
    """Whether an app's worker keeps its messages when it loses the connection to its broker."""
    transport_class = app.connection_for_read().get_transport_cls()
    return bool(getattr(transport_class, "outlives_connections", False))


def _point_to(aliases: dict[str, str]) -> None:
    transport.TRANSPORT_ALIASES.update(aliases)
    transport._transport_cache.clear()  # noqa: SLF001  kombu has no public way
