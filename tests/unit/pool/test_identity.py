"""Whose request it is, in bodies, in their children, in threads and outside."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading

import pytest
from celery import Celery, _state
from celery.app.task import Context
from greenlet import getcurrent

from legit_embedding.pool.identity import current_identity, enter_scope, install


@pytest.fixture
def task():
    """A task of an app with the pool's identity, as it was before once the test is over."""
    before = _state._task_stack.__ident_func__
    app = Celery("identity", set_as_current=False)

    @app.task(shared=False, bind=True)
    def sample(self):
        return self.request.id

    install(app)
    yield sample
    _state._task_stack.__ident_func__ = before


def test_outside_a_scope_the_greenlet_is_the_key():
    assert current_identity() is getcurrent()


async def test_a_scope_is_the_key_for_children_and_for_nobody_else():
    async def child():
        return current_identity()

    async def body(scope):
        enter_scope(scope)
        await asyncio.sleep(0)
        return [current_identity(), *await asyncio.gather(child(), child())]

    first, second = object(), object()
    assert await asyncio.gather(asyncio.create_task(body(first)), asyncio.create_task(body(second))) == [
        [first] * 3,
        [second] * 3,
    ]
    assert current_identity() is getcurrent()


def test_a_plain_thread_has_a_key_of_its_own():
    found = []
    enter = contextvars.copy_context()
    enter.run(enter_scope, "scope")
    thread = threading.Thread(target=lambda: found.append(current_identity()))
    enter.run(thread.start)
    thread.join()
    assert found[0] not in ("scope", getcurrent())


async def test_interleaved_bodies_see_their_own_request_and_leave_nothing_behind(task):
    async def child():
        await asyncio.sleep(0)
        return task.request.id, _state.get_current_task()

    async def body(number):
        enter_scope(object())
        _state._task_stack.push(task)
        task.request_stack.push(Context(id=number))
        try:
            await asyncio.sleep(0)
            seen = [(task.request.id, _state.get_current_task()), *await asyncio.gather(child(), child())]
        finally:
            task.request_stack.pop()
            _state._task_stack.pop()
        return seen

    found = await asyncio.gather(*(asyncio.create_task(body(number)) for number in range(20)))
    assert found == [[(number, task)] * 3 for number in range(20)]
    assert task.request_stack.top is None
    assert dict(task.request_stack._local) == {}


def test_installing_twice_changes_nothing(task):
    install(task.app)
    assert task.request_stack.__ident_func__ is current_identity
    assert _state._task_stack.__ident_func__ is current_identity


def test_celerys_thread_local_stacks_are_refused_because_tasks_share_a_thread():
    code = "import celery, legit_embedding.pool.identity as identity; identity.install(celery.Celery())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "USE_FAST_LOCALS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "USE_FAST_LOCALS is set in the environment: take it away" in done.stderr
