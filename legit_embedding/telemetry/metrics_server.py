"""Prometheus metrics over HTTP, on a thread of their own: they answer even while the event loop is stuck."""

import asyncio
import logging
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server

from legit_embedding.errors import ConfigurationError

logger = logging.getLogger(__name__)


class MetricsServer:
    """Serves `registry` at `http://host:port/metrics`; an async context manager. `port` None: serves nothing.

    Raises:
        ConfigurationError: on entering; the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int | None) -> None:
        self._registry = registry
        self._host = host
        self._wanted_port = port
        self.port: int | None = None

    async def __aenter__(self) -> Self:
        if self._wanted_port is None:
            return self
        try:
            self._server, self._thread = start_http_server(self._wanted_port, self._host, registry=self._registry)
        except OSError as error:
            raise ConfigurationError(
                f"LEGIT_METRICS_PORT={self._wanted_port}: cannot listen on {self._host}: {error.strerror or error}"
            ) from error
        self.port = int(self._server.server_port)
        logger.info("metrics on http://%s:%d/metrics", self._host, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.port is None:
            return
        self.port = None
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)

    def __repr__(self) -> str:
        return f"<MetricsServer {'off' if self.port is None else f'{self._host}:{self.port}'}>"
