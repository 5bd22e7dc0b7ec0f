"""Metrics over HTTP."""

import socket
import urllib.error
import urllib.request

import pytest

from legit_embedding.errors import ConfigurationError
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.telemetry.metrics_server import MetricsServer


def fetch(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


async def test_the_registry_is_served_until_the_context_is_left():
    metrics = Metrics(identity="w")
    metrics.item("clip", "ok", 7)
    async with MetricsServer(metrics.registry, host="127.0.0.1", port=0) as server:
        port = server.port
        assert 'legit_items_total{model="clip",outcome="ok"} 7.0' in fetch(port)
        assert repr(server) == f"<MetricsServer 127.0.0.1:{port}>"
    with pytest.raises(urllib.error.URLError):
        fetch(port)


async def test_without_a_port_nothing_listens():
    async with MetricsServer(Metrics(identity="w").registry, host="127.0.0.1", port=None) as server:
        assert repr(server) == "<MetricsServer off>"


async def test_a_port_in_use_is_told_with_the_setting():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = MetricsServer(Metrics(identity="w").registry, host="127.0.0.1", port=port)
        with pytest.raises(ConfigurationError, match=f"LEGIT_METRICS_PORT={port}"):
            await server.__aenter__()
