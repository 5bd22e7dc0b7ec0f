"""Error reports reach a Sentry server: one a cause, under the worker's identity, and a stop does not wait for more."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from legit_embedding.testing.worker import WorkerProcess
from tests.acceptance.site import TEXTS

ARGS = ("-P", "legit_async", "-l", "INFO")


@pytest.fixture
def ingest():
    """A Sentry server: its DSN, and the events that it was sent."""
    events = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            lines = body.split(b"\n")
            for header, payload in zip(lines[1::2], lines[2::2], strict=False):
                if json.loads(header).get("type") == "event":
                    events.append(json.loads(payload))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://key@127.0.0.1:{server.server_port}/1", events
        server.shutdown()
        thread.join()


def test_a_model_that_cannot_be_loaded_is_one_event_however_many_items_ask(server, site, ingest, tmp_path):
    dsn, events = ingest
    models = tmp_path / "models.toml"
    models.write_text('[defaults]\ntext = "m"\n[models.m]\nadapter = "transformers"\nweights = "/no/such/folder"\n')
    env = {
        "LEGIT_BROKER_URL": server.url(),
        "LEGIT_MODELS": str(models),
        "LEGIT_WORKER_ID": "embed@rack-7",
        "LEGIT_RETRIES": "0",
        "SENTRY_DSN": dsn,
    }
    with WorkerProcess("legit_embedding", args=ARGS, env=env) as worker:
        for number in range(5):
            site.send(TEXTS, {"texts": ["a"] * 10, "reply_to": f"r{number}"})
        for number in range(5):
            assert {entry.error_type for entry in site.entries(f"r{number}", 10)} == {"model_unavailable"}
        assert worker.stop() == 0
    assert len(events) == 1
    (event,) = events
    assert event["server_name"] == "embed@rack-7"
    assert event["tags"]["worker"] == "embed@rack-7"
    assert event["tags"]["cause"] == "model-load:m"
    assert "/no/such/folder" in json.dumps(event["exception"])
