"""A broker for each file of tests, and another server for what its workers note; each test finds both empty."""

from contextlib import closing

import pytest

from legit_embedding.testing.server import EmbeddedServer
from tests.integration.broker.client import Client


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture(scope="module")
def notes_server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture
def client(server, notes_server):
    with closing(Client(server.url(), notes_server.url())) as own:
        own.reset()
        yield own
