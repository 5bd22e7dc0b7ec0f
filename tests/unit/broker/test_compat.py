"""What differs between versions."""

import sys

import pytest
from celery.worker import state

from legit_embedding.broker.compat import let_go_of_forgotten


class Request:
    def __init__(self, task_id):
        self.id = task_id


@pytest.fixture
def table():
    """Celery's table of all requests, empty; other tests may have run a worker in this process."""
    before = dict(state.requests)
    state.requests.clear()
    yield state.requests
    state.requests.clear()
    state.requests.update(before)


def test_requests_that_celery_keeps_in_its_table_alone_are_let_go_of(table):
    waiting, running, reserved = (Request(name) for name in ("waiting", "running", "reserved"))
    table.update({request.id: request for request in (waiting, running, reserved)})
    state.active_requests.add(running)
    state.reserved_requests.add(reserved)
    let_go_of_forgotten()
    assert list(table) == ["running", "reserved"]


def test_without_celery_there_is_nothing_to_let_go_of(monkeypatch, table):
    table["waiting"] = Request("waiting")
    monkeypatch.delitem(sys.modules, "celery.worker.state")
    let_go_of_forgotten()
    assert list(table) == ["waiting"]
