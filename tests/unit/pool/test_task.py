"""`async def` tasks away from the pool's loop: called, eager, class-based, and inside somebody's running loop."""

import asyncio
import inspect

import pytest
from celery import Celery

from legit_embedding.pool.bridge import Drive
from legit_embedding.pool.task import AsyncTask


@pytest.fixture
def app():
    own = Celery("tasks", task_cls="legit_embedding.pool.task:AsyncTask", set_as_current=False)
    own.conf.task_always_eager = True
    yield own
    own.close()


@pytest.fixture
def add(app):
    @app.task(shared=False)
    async def add(a, b=1):
        """Adds."""
        await asyncio.sleep(0)
        return a + b

    return add


def test_an_async_task_is_called_like_a_function(add):
    assert add(1, b=2) == 3


def test_an_async_task_runs_eagerly(add):
    assert add.delay(1, 2).get() == 3
    assert add.apply((1,)).get() == 2


def test_an_async_task_keeps_its_name_signature_and_documentation(add):
    assert add.name.endswith(".add")
    assert add.__doc__ == "Adds."
    assert list(inspect.signature(add.run).parameters) == ["a", "b"]
    with pytest.raises(TypeError):
        add.delay()


def test_an_async_task_is_marked_and_a_plain_one_is_not(app, add):
    @app.task(shared=False)
    def plain():
        return "plain"

    assert add.is_async
    assert not plain.is_async
    assert plain() == "plain"
    assert not inspect.iscoroutinefunction(add.run)


async def test_the_coroutine_itself_can_be_awaited(add):
    assert await add.async_run(1, 2) == 3


@pytest.mark.parametrize("call", [lambda task: task(1), lambda task: task.run(1)])
async def test_a_call_inside_a_running_loop_is_refused_and_says_what_to_do(add, call):
    """The loop would stand still. No coroutine is left that was never awaited."""
    with pytest.raises(RuntimeError, match="await its `async_run` instead"):
        call(add)


async def test_an_eager_call_inside_a_running_loop_fails_in_the_same_way(add):
    assert "async_run" in str(add.apply((1,)).result)


async def test_a_call_inside_a_tasks_greenlet_awaits_and_lets_others_run(app):
    first, second = asyncio.Event(), asyncio.Event()

    @app.task(shared=False)
    async def meet(mine, other):
        mine.set()
        await other.wait()
        return "met"

    assert await asyncio.gather(Drive(meet, first, second), Drive(meet, second, first)) == ["met", "met"]


def test_a_bound_task_gets_itself(app):
    @app.task(shared=False, bind=True)
    async def who(self):
        await asyncio.sleep(0)
        return self.request.id, self.name

    result = who.delay()
    assert result.get() == (result.id, who.name)


def test_autoretry_sees_what_the_coroutine_raises(app):
    """Celery wraps `run` after us, and would otherwise wrap a function that only makes a coroutine."""
    attempts = []

    @app.task(shared=False, bind=True, autoretry_for=(ValueError,), retry_kwargs={"max_retries": 3, "countdown": 0})
    async def unsteady(self):
        attempts.append(self.request.retries)
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise ValueError("again")
        return "steady"

    assert unsteady.delay().get() == "steady"
    assert attempts == [0, 1, 2]


def test_a_class_based_task(app):
    class Doubling(AsyncTask):
        name = "doubling"
        factor = 2

        async def run(self, number):
            await asyncio.sleep(0)
            return number * self.factor

    task = app.register_task(Doubling())
    assert task.is_async
    assert task.delay(21).get() == 42


def test_a_static_run(app):
    class Static(AsyncTask):
        name = "static"

        @staticmethod
        async def run(number):
            await asyncio.sleep(0)
            return number + 1

    task = app.register_task(Static())
    assert task.is_async
    assert task(1) == 2
    assert asyncio.run(task.async_run(1)) == 2


def test_a_subclass_inherits_an_async_run_or_replaces_it():
    """A plain `run` in the place of an async one would otherwise block the loop."""

    class Base(AsyncTask):
        async def run(self):
            await asyncio.sleep(0)
            return "async"

    class Inheriting(Base):
        pass

    class Plain(Base):
        def run(self):
            return "plain"

    assert Inheriting.is_async
    assert Inheriting().run() == "async"
    assert not Plain.is_async
    assert Plain().run() == "plain"
