"""One real server for all integration tests; each test finds it empty."""

import pytest
import redis

from legit_embedding.testing.server import EmbeddedServer


@pytest.fixture(scope="session")
def server():
    """Runs for the whole session; a test that pauses, kills or configures a server takes `own_server` instead."""
    with EmbeddedServer() as shared:
        yield shared


@pytest.fixture
def redis_url(server):
    """The shared server's URL, emptied before the test."""
    with redis.Redis.from_url(server.url()) as connection:
        connection.flushall()
    return server.url()


@pytest.fixture
def client(redis_url):
    """A plain synchronous client of the shared server; replies are text."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as connection:
        yield connection


@pytest.fixture
def own_server():
    """A server for this test alone, to be killed, paused or filled up."""
    with EmbeddedServer() as own:
        yield own
