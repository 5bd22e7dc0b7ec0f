"""Error reports reach a Sentry server: one a cause, under the worker's identity, and a stop does not wait for more."""

import io
import json

import pytest
from PIL import Image

from legit_embedding.testing.ingest import IngestServer, QuietHandler, serving
from legit_embedding.testing.worker import WorkerProcess
from tests.acceptance.site import IMAGES, TEXTS

ARGS = ("-P", "legit_async", "-l", "INFO")


SECRET_TEXT = "a-secret-text"
SIGNATURE = "a-secret-signature"

FAULTY_ADAPTER = """
from legit_embedding.testing.model import FakeAdapter, FakeModel

class Adapter(FakeAdapter):
    def __init__(self):
        super().__init__()
        self.make = faulty

def faulty(**arguments):
    model = FakeModel(**arguments)
    model.fail = lambda _: RuntimeError("the model is broken")
    if model.info.modality == "image":
        model.prepare = prepare
    return model

def prepare(payloads, options):
    raise LookupError("the model is broken")
"""


@pytest.fixture
def ingest():
    with IngestServer() as server:
        yield server


@pytest.fixture
def image_host():
    """A host of one picture: its address, and the headers of each request."""
    requests = []
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")

    class Handler(QuietHandler):
        def do_GET(self):
            requests.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", str(len(picture.getvalue())))
            self.end_headers()
            self.wfile.write(picture.getvalue())

    with serving(Handler) as port:
        yield f"127.0.0.1:{port}", requests


@pytest.fixture
def faulty_models(tmp_path):
    """A worker's environment with an adapter on its path whose text model fails in `forward`, its image one sooner."""
    (tmp_path / "faulty_adapter.py").write_text(FAULTY_ADAPTER)
    package = tmp_path / "faulty_adapter-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-adapter\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[legit_embedding.models]\nfaulty = faulty_adapter:Adapter\n")
    models = tmp_path / "models.toml"
    models.write_text(
        '[defaults]\nimage = "i"\ntext = "t"\n[models.t]\nadapter = "faulty"\n'
        '[models.i]\nadapter = "faulty"\nmodality = "image"\n'
    )
    return {"LEGIT_MODELS": str(models), "LEGIT_WARM_UP": "false", "PYTHONPATH": str(tmp_path)}


def test_a_model_that_cannot_be_loaded_is_one_event_however_many_items_ask(server, site, ingest, tmp_path):
    models = tmp_path / "models.toml"
    models.write_text('[defaults]\ntext = "m"\n[models.m]\nadapter = "transformers"\nweights = "/no/such/folder"\n')
    env = {
        "LEGIT_BROKER_URL": server.url(),
        "LEGIT_MODELS": str(models),
        "LEGIT_WORKER_ID": "embed@rack-7",
        "LEGIT_RETRIES": "0",
        "SENTRY_DSN": ingest.dsn,
    }
    with WorkerProcess("legit_embedding", args=ARGS, env=env) as worker:
        for number in range(5):
            site.send(TEXTS, {"texts": ["a"] * 10, "reply_to": f"r{number}"})
        for number in range(5):
            assert {entry.error_type for entry in site.entries(f"r{number}", 10)} == {"model_unavailable"}
        assert worker.stop() == 0
    (event,) = ingest.events
    assert event["server_name"] == "embed@rack-7"
    assert event["tags"]["worker"] == "embed@rack-7"
    assert event["tags"]["cause"] == "model-load:m"
    assert "/no/such/folder" in json.dumps(event["exception"])


def test_no_event_holds_what_users_sent_and_no_image_host_hears_of_sentry(
    server, site, ingest, image_host, faulty_models
):
    host, requests = image_host
    env = {
        "LEGIT_BROKER_URL": server.url(),
        "LEGIT_ALLOWED_HOSTS": host,
        "SENTRY_DSN": ingest.dsn,
        **faulty_models,
    }
    url = f"http://{host}/picture.png?X-Amz-Signature={SIGNATURE}"
    with WorkerProcess("legit_embedding", args=ARGS, env=env) as worker:
        (text,) = site.embed(TEXTS, {"texts": [SECRET_TEXT]})
        (image,) = site.embed(IMAGES, {"items": [{"url": url}]})
        assert worker.stop() == 0
    assert (text.status, image.status) == ("error", "error")
    assert {event["tags"]["cause"] for event in ingest.events} == {"model:t:RuntimeError", "internal:LookupError"}
    assert [name for name in requests[0] if name.lower() in {"sentry-trace", "baggage"}] == []
    told = json.dumps(ingest.items)
    assert SECRET_TEXT not in told
    assert SIGNATURE not in told
    assert server.url() not in told
