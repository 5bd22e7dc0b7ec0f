"""Which transport kombu takes for a URL."""

from types import SimpleNamespace

import pytest
from kombu import Connection, transport
from kombu.transport import memory
from kombu.transport import redis as stock

from legit_embedding import broker
from legit_embedding.broker import amqp
from legit_embedding.broker.transport import SentinelTransport, Transport

OURS = {
    "redis://localhost:1/0": Transport,
    "rediss://localhost:1/0": Transport,
    "redis+socket:///nowhere.sock": Transport,
    "sentinel://localhost:1/0": SentinelTransport,
    "amqp://localhost:1//": amqp.Transport,
    "pyamqp://localhost:1//": amqp.Transport,
    "amqps://localhost:1//": amqp.SSLTransport,
}


@pytest.fixture(autouse=True)
def _as_before():
    before = dict(transport.TRANSPORT_ALIASES)
    broker.uninstall()
    yield
    transport.TRANSPORT_ALIASES.clear()
    transport.TRANSPORT_ALIASES.update(before)
    transport._transport_cache.clear()


def class_for(url):
    return Connection(url).get_transport_cls()


@pytest.mark.parametrize("url", OURS)
def test_once_installed_every_url_of_redis_or_amqp_is_ours(url):
    broker.install()
    assert class_for(url) is OURS[url]


@pytest.mark.parametrize("url", OURS)
def test_it_is_installed_although_kombu_has_looked_before(url):
    assert class_for(url).__module__.startswith("kombu.transport.")
    broker.install()
    assert class_for(url) is OURS[url]


def test_a_second_call_does_nothing_and_one_uninstall_is_enough():
    broker.install()
    broker.install()
    broker.uninstall()
    assert class_for("redis://localhost:1/0") is stock.Transport
    assert class_for("sentinel://localhost:1/0") is stock.SentinelTransport
    broker.uninstall()
    assert class_for("redis://localhost:1/0") is stock.Transport


def test_other_brokers_are_left_alone():
    others = {name: path for name, path in transport.TRANSPORT_ALIASES.items() if name not in broker.register.ALIASES}
    broker.install()
    assert {name: transport.TRANSPORT_ALIASES[name] for name in others} == others
    assert class_for("memory://") is memory.Transport


def test_a_switch_to_the_next_of_several_urls_stays_with_us():
    broker.install()
    connection = Connection("redis://first:1/0;redis://second:1/0")
    connection.switch("redis://second:1/0")
    assert connection.get_transport_cls() is Transport
    assert connection.hostname == "second"


@pytest.mark.parametrize(
    ("installed", "url", "expected"),
    [
        (True, "redis://localhost:1/0", True),
        (True, "sentinel://localhost:1/0", True),
        (True, "memory://", False),
        (True, "amqp://localhost:1//", False),
        (False, "redis://localhost:1/0", False),
    ],
)
def test_only_workers_of_our_transport_keep_their_messages_when_the_connection_is_lost(installed, url, expected):
    if installed:
        broker.install()
    app = SimpleNamespace(connection_for_read=lambda: Connection(url))
    assert broker.outlives_connections(app) is expected
