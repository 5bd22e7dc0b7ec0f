"""One name a worker."""

import logging
import socket
from types import SimpleNamespace

import pytest
from celery.utils.nodenames import default_nodename

from legit_embedding.config import load_settings
from legit_embedding.telemetry import identity


@pytest.fixture(autouse=True)
def not_adopted(monkeypatch):
    monkeypatch.setattr(identity, "_adopted", None)
    for variable in ("LEGIT_WORKER_ID", "LEGIT_SERVICE"):
        monkeypatch.delenv(variable, raising=False)


def worker(hostname):
    return SimpleNamespace(hostname=hostname)


def test_the_name_is_service_at_host_where_nothing_else_is_said():
    celery_worker = worker(default_nodename(""))
    name = identity.adopt_identity(celery_worker, load_settings(service="embed"))
    assert name == celery_worker.hostname == f"embed@{socket.gethostname()}"


def test_a_node_name_given_on_the_command_line_is_kept():
    celery_worker = worker("left@rack-7")
    assert identity.adopt_identity(celery_worker, load_settings()) == "left@rack-7"
    assert celery_worker.hostname == "left@rack-7"


def test_the_setting_wins_over_the_command_line():
    celery_worker = worker("left@rack-7")
    assert identity.adopt_identity(celery_worker, load_settings(worker_id="gpu-3")) == "gpu-3"
    assert celery_worker.hostname == "gpu-3"


def test_the_process_keeps_the_name_that_its_worker_adopted():
    settings = load_settings(service="embed")
    assert identity.current_identity(settings) == settings.identity
    identity.adopt_identity(worker("left@rack-7"), settings)
    assert identity.current_identity(settings) == "left@rack-7"


def test_each_line_of_the_log_carries_the_name_whatever_is_in_it():
    record = logging.LogRecord("l", logging.INFO, "f.py", 1, "task %s", ("done",), None)
    formatted = logging.Formatter(identity.log_formats("100%@rack")["worker_log_format"]).format(record)
    assert formatted.endswith(": INFO/100%@rack] task done")
