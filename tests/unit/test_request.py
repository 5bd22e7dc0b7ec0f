"""The files of a task's message go with its ack: once, and only when the task does not come back."""

import pytest

from legit_embedding import runtime
from legit_embedding.application import app
from legit_embedding.contract import PREPARE_IMAGES
from legit_embedding.request import EmbeddingRequest
from tasks.preparation import prepare_images  # noqa: F401  registers the task

ENVELOPE = {"items": [{"path": "/a"}]}


class Message:
    """As much of a broker's message as a request reads."""

    content_type, content_encoding = "application/json", "utf-8"
    delivery_info = properties = None
    body = b""
    payload = ([ENVELOPE], {}, {})

    def __init__(self):
        self.headers = {"id": "t1", "task": PREPARE_IMAGES}


@pytest.fixture
def told(monkeypatch):
    """What happened, in order."""
    told = []
    monkeypatch.setattr(runtime, "discard_files", lambda *task: told.append(task))
    return told


def make(told, *, acks_late=True):
    request = EmbeddingRequest(
        Message(),
        app=app,
        on_ack=lambda *_: told.append("ack"),
        on_reject=lambda *_: told.append("reject"),
    )
    request._task = type("Task", (), {"kind": "images", "acks_late": acks_late, "send_events": False})()
    return request


FILES = ("images", [ENVELOPE], {})


def test_after_the_ack_and_once(told):
    request = make(told)
    request.acknowledge()
    request.acknowledge()
    request.reject(requeue=False)
    assert told == ["ack", FILES]


@pytest.mark.parametrize(("requeue", "then"), [(True, []), (False, [FILES])])
def test_a_rejected_task_keeps_its_files_where_it_comes_back(told, requeue, then):
    make(told).reject(requeue=requeue)
    assert told == ["reject", *then]


def test_an_ack_before_the_task_runs_takes_nothing_from_it(told):
    make(told, acks_late=False).acknowledge()
    assert told == ["ack"]


def test_the_registered_tasks_carry_what_their_items_may_be():
    assert app.tasks[PREPARE_IMAGES].kind == "images"
