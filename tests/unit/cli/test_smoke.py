"""`legit-embedding smoke`: which broker it asks, what it makes of the streams, and that it leaves none behind."""

import base64

import numpy as np
import pytest
from kombu import Connection
from typer.testing import CliRunner

from legit_embedding.cli import cli, smoke
from legit_embedding.config import Settings, variable_name
from legit_embedding.contract import Names
from legit_embedding.publish.errors import ResultServerError

BROKER = "memory://"
QUEUES = ("image_preparation", "text_embedding")


class FakeStreams:
    """A result server with a worker behind it: reading takes the tasks off the broker and answers them.

    `status` is what the worker says to each; `foreign` entries stand on the global stream before it answers; `error`
    is raised instead.
    """

    def __init__(self):
        self.status = "ok"
        self.foreign = []
        self.error = None
        self.envelopes = []
        self.deleted = []

    def __call__(self, url):
        self.url = url
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nothing to close."""

    def last_id(self, stream):
        return "0-0"

    def delete(self, stream):
        self.deleted.append(stream)

    def read(self, streams, *, timeout_s):
        for fields in self.foreign:
            yield "embeddings:results", "1-1", fields
        for queue in QUEUES:
            message = take(queue)
            (envelope,), *_ = message.payload
            self.envelopes.append(envelope)
            if self.error is not None:
                raise self.error
            yield envelope["reply_to"], "1-1", self.answer(message.headers["id"])

    def answer(self, task_id):
        vector = base64.b64encode(np.ones(4, np.float32).tobytes()).decode()
        return {"status": self.status, "task_id": task_id, "index": "0", "dim": "4", "embedding": vector}


def take(queue):
    """The next message of a queue of the broker in memory."""
    with Connection(BROKER) as connection, connection.SimpleQueue(queue) as simple:
        message = simple.get_nowait()
        message.ack()
        return message


@pytest.fixture
def streams(monkeypatch):
    """The result server that the command finds."""
    for variable in map(variable_name, Settings.model_fields):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")  # nobody listens there: it must not be asked
    fake = FakeStreams()
    monkeypatch.setattr(smoke, "StreamReader", fake)
    yield fake
    with Connection(BROKER) as connection:
        for queue in QUEUES:
            connection.SimpleQueue(queue).clear()


def run(*args):
    return CliRunner().invoke(cli, ["smoke", "--broker", BROKER, "--results", "redis://results/0", *args])


def test_the_broker_on_the_command_line_wins_over_celerys_variable(streams):
    result = run()
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0].split() == ["broker", "memory://"]
    assert [list(envelope["items"][0]) for envelope in streams.envelopes] == [["id", "data"], ["id", "text"]]


def test_an_entry_of_somebody_else_is_passed_over(streams):
    streams.foreign = [{"hello": "world"}, streams.answer("a-task-of-another")]
    assert run().exit_code == 0


def test_an_error_entry_fails_the_command_and_is_shown(streams):
    streams.status = "error"
    result = run()
    assert result.exit_code == 1
    assert "smoke failed" in result.output


def test_an_answer_that_does_not_come_fails_the_command(streams, monkeypatch):
    monkeypatch.setattr(streams, "read", lambda *_, **__: iter(()))
    result = run("--timeout", "7")
    assert result.exit_code == 1
    assert result.output.count("nothing came in 7 s") == 2


def test_the_reply_stream_is_deleted_even_where_reading_fails(streams):
    streams.error = ResultServerError("the result server cannot be read")
    assert run().exception is streams.error
    assert streams.deleted == [streams.envelopes[0]["reply_to"]]


def test_the_items_carry_the_names_of_the_site(streams, monkeypatch):
    names = Names.from_tables({"envelope": {"id": "key", "text": "words"}})
    monkeypatch.setattr(smoke.Names, "load", lambda _: names)
    assert run().exit_code == 0
    assert list(streams.envelopes[1]["items"][0]) == ["key", "words"]
