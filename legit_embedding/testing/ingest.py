"""A Sentry server of one's own: it keeps what it is sent, and nothing leaves the machine."""

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"


class QuietHandler(BaseHTTPRequestHandler):
    """Prints nothing."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Requests to a free port on the loopback interface are answered by `handler`; the port."""
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="serving", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class IngestServer:
    """A context manager; an SDK that is given its `dsn` sends everything here."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []
        self._answers = threading.Event()
        self._answers.set()
        self._asked = threading.Event()
        self._port: int | None = None
        self._serving = serving(self._handler())

    @property
    def dsn(self) -> str:
        """What `sentry_sdk.init` takes."""
        return f"http://key@{HOST}:{self._port}/1"

    @property
    def events(self) -> list[Any]:
        """The errors that were reported, in the order in which they came."""
        return self.of_kind("event")

    @property
    def transactions(self) -> list[Any]:
        """The traces that were reported, in the order in which they came."""
        return self.of_kind("transaction")

    def of_kind(self, kind: str) -> list[Any]:
        """The payloads of one kind of envelope item."""
        return [payload for found, payload in tuple(self.items) if found == kind]

    def pause(self) -> None:
        """From now on requests are taken and not answered."""
        self._asked.clear()
        self._answers.clear()

    def resume(self) -> None:
        """Requests are answered again, those that wait too."""
        self._answers.set()

    def wait_for_request(self, timeout_s: float) -> bool:
        """Whether a request came since `pause`, waited for at most `timeout_s` seconds."""
        return self._asked.wait(timeout_s)

    def __enter__(self) -> Self:
        self._port = self._serving.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.resume()
        self._serving.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<IngestServer on port {self._port}: {len(self.items)} items>"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server._asked.set()
                server._answers.wait()
                encoding = self.headers.get("Content-Encoding", "identity")
                if encoding not in ("identity", "gzip"):
                    self.send_error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
                    return
                server.items.extend(items_of(gzip.decompress(body) if encoding == "gzip" else body))
                with contextlib.suppress(ConnectionError):  # who asked has gone, as after a `pause`
                    self.send_response(HTTPStatus.OK)
                    self.end_headers()
                    self.wfile.write(b"{}")

        return Handler


def items_of(envelope: bytes) -> Iterator[tuple[str, Any]]:
    """The items of an envelope: each one's kind, and its payload where that is JSON, else its bytes."""
    rest = envelope.partition(b"\n")[2]
    while rest:
        head, _, rest = rest.partition(b"\n")
        if not head:
            continue
        header = json.loads(head)
        end = header.get("length", rest.find(b"\n"))
        end = len(rest) if end < 0 else end
        payload, rest = rest[:end], rest[end:]
        try:
            yield header["type"], json.loads(payload)
        except ValueError:
            yield header["type"], payload
