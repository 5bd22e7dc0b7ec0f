"""A suite of somebody else's with Celery's pytest fixtures; its workers use the pool, on the broker `FIXTURES_APP_URL`.

Run by `test_start_worker.py`, in a process of its own.
"""

import asyncio
import os
import threading

import pytest
from celery import shared_task

import legit_embedding.pool  # noqa: F401  makes `legit_async` known

PATIENCE_S = 30


@pytest.fixture(scope="session")
def celery_config():
    return {"broker_url": os.environ["FIXTURES_APP_URL"], "result_backend": os.environ["FIXTURES_APP_URL"]}


@pytest.fixture(scope="session")
def celery_parameters():
    return {"task_cls": "legit_embedding.pool.task:AsyncTask"}


@pytest.fixture(scope="session")
def celery_worker_pool():
    return "legit_async"


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"concurrency": 10, "ping_task_timeout": PATIENCE_S, "shutdown_timeout": PATIENCE_S}


@shared_task
async def multiply(a, b):
    await asyncio.sleep(0)
    return a * b


@pytest.mark.parametrize("number", [1, 2])
def test_a_worker_of_each_test(celery_app, celery_worker, number):
    @celery_app.task
    async def where():
        await asyncio.sleep(0)
        return threading.current_thread().name

    celery_worker.reload()
    assert where.delay().get(timeout=PATIENCE_S) == "legit-loop"


@pytest.mark.parametrize("number", [1, 2])
def test_a_worker_of_the_session(celery_session_app, celery_session_worker, number):
    results = [multiply.delay(number, other) for other in range(10)]
    assert [result.get(timeout=PATIENCE_S) for result in results] == [number * other for other in range(10)]
