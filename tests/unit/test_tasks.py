"""From a Celery request to a Delivery."""

from datetime import UTC, datetime

import pytest
from celery.app.task import Context

from legit_embedding import runtime
from legit_embedding.application import app
from legit_embedding.contract import EMBED_TEXTS
from legit_embedding.errors import WrongPoolError
from tasks.common import delivery_of
from tasks.text_embedding import embed_texts  # noqa: F401  registers the task


def request(**fields):
    return Context({"id": "t1", "delivery_info": {}, **fields})


@pytest.mark.parametrize(
    ("fields", "attempt"),
    [
        ({}, 1),
        ({"delivery_info": {"redelivered": False}}, 1),
        ({"delivery_info": {"redelivered": True}}, 2),
        ({"x-delivery-count": 3, "delivery_info": {"redelivered": True}}, 4),
        ({"delivery_info": None}, 1),
    ],
)
def test_the_attempt_is_what_the_broker_tells(fields, attempt):
    assert delivery_of(request(**fields)).attempt == attempt


@pytest.mark.parametrize(
    "expires", ["2030-01-01T00:00:00+00:00", "2030-01-01T00:00:00", datetime(2030, 1, 1, tzinfo=UTC)]
)
def test_expires_becomes_seconds_since_the_epoch(expires):
    assert delivery_of(request(expires=expires)).expires_at_s == datetime(2030, 1, 1, tzinfo=UTC).timestamp()


def test_a_task_without_expires_never_expires():
    assert delivery_of(request()).expires_at_s is None


def test_under_another_pool_the_tasks_refuse_with_a_clear_error():
    with pytest.raises(WrongPoolError, match="-P legit_async"):
        runtime.current()


def test_an_unknown_field_may_have_any_name():
    """Also the one that Python gives the task itself."""
    with pytest.raises(WrongPoolError):
        app.tasks[EMBED_TEXTS].run(self="a field", texts=["a"])
