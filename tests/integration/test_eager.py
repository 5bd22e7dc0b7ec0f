"""Eager mode and direct calls: the same tasks without a worker, a broker or a backend."""

import asyncio

import pytest
from celery import Celery, chain, chord, group

import legit_embedding.pool  # noqa: F401  as every app that uses the task class

HINT = "await its `async_run` instead"


class NotYetError(Exception):
    pass


eager = Celery("eager", task_cls="legit_embedding.pool.task:AsyncTask", set_as_current=False)
eager.conf.task_always_eager = True


@eager.task(name="add", shared=False)
async def add(a, b=1):
    await asyncio.sleep(0)
    return a + b


@eager.task(name="plain_add", shared=False)
def plain_add(a, b=1):
    return a + b


@eager.task(name="total", shared=False)
async def total(numbers):
    await asyncio.sleep(0)
    return sum(numbers)


@eager.task(name="fail", shared=False)
async def fail(message):
    await asyncio.sleep(0)
    raise KeyError(message)


@eager.task(name="plain_fail", shared=False)
def plain_fail(message):
    raise KeyError(message)


@eager.task(name="retry", bind=True, max_retries=3, shared=False)
async def retry(self, tries):
    await asyncio.sleep(0)
    if self.request.retries < tries:
        raise self.retry(countdown=0, exc=NotYetError(str(self.request.retries)))
    return self.request.retries


@eager.task(name="plain_retry", bind=True, max_retries=3, shared=False)
def plain_retry(self, tries):
    if self.request.retries < tries:
        raise self.retry(countdown=0, exc=NotYetError(str(self.request.retries)))
    return self.request.retries


retrying = {"autoretry_for": (NotYetError,), "retry_kwargs": {"max_retries": 3, "countdown": 0}}


@eager.task(name="autoretry", bind=True, shared=False, **retrying)
async def autoretry(self, tries):
    await asyncio.sleep(0)
    if self.request.retries < tries:
        raise NotYetError(str(self.request.retries))
    return self.request.retries


@eager.task(name="look", bind=True, shared=False)
async def look(self):
    """The request: the id before an await, after it, and in a child."""
    before = self.request.id
    await asyncio.sleep(0)

    async def child():
        return self.request.id

    after, in_child = self.request.id, (await asyncio.gather(child()))[0]
    return [before, after, in_child, self.request.is_eager, self.request.called_directly, list(self.request.args or ())]


@eager.task(name="plain_look", bind=True, shared=False)
def plain_look(self):
    request = self.request
    return [request.id] * 3 + [request.is_eager, request.called_directly, list(request.args)]


@pytest.fixture
def app():
    yield eager
    eager.conf.task_eager_propagates = False


@pytest.fixture(params=["delay", "apply"])
def call(request, app):
    """Calls a task by name, through `delay` or `apply`."""

    def called(name, *args):
        task = app.tasks[name]
        return task.delay(*args) if request.param == "delay" else task.apply(args)

    return called


@pytest.mark.parametrize(
    ("name", "args", "value"),
    [
        ("add", (1, 2), 3),
        ("plain_add", (1, 2), 3),
        ("retry", (2,), 2),
        ("plain_retry", (2,), 2),
        ("autoretry", (2,), 2),
        ("retry", (0,), 0),
    ],
)
def test_a_task_has_run_when_the_call_returns(call, name, args, value):
    result = call(name, *args)
    assert result.state == "SUCCESS"
    assert result.get() == value


@pytest.mark.parametrize(
    ("name", "args", "error", "says"),
    [
        ("fail", ("why",), KeyError, "why"),
        ("plain_fail", ("why",), KeyError, "why"),
        ("retry", (9,), NotYetError, "3"),
        ("plain_retry", (9,), NotYetError, "3"),
        ("autoretry", (9,), NotYetError, "3"),
    ],
)
def test_a_failure_is_the_results_until_it_is_asked_for(app, call, name, args, error, says):
    result = call(name, *args)
    assert result.state == "FAILURE"
    assert isinstance(result.result, error)
    with pytest.raises(error, match=says):
        result.get()


@pytest.mark.parametrize("name", ["fail", "plain_fail"])
def test_a_failure_comes_out_of_the_call_where_it_shall_propagate(app, name):
    with pytest.raises(KeyError, match="why"):
        app.tasks[name].apply(("why",), throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(KeyError, match="why"):
        app.tasks[name].delay("why")


def test_the_traceback_of_a_failure_goes_down_into_the_body(app):
    result = app.tasks["fail"].apply(("why",))
    assert "in fail\n    raise KeyError(message)" in result.traceback


@pytest.mark.parametrize("name", ["look", "plain_look"])
def test_the_request_says_that_it_is_eager(app, call, name):
    result = call(name)
    assert result.get() == [result.id, result.id, result.id, True, False, []]
    assert app.tasks[name].request.id is None  # and is gone afterwards


def test_canvases_run(app):
    add, plain, total = app.tasks["add"], app.tasks["plain_add"], app.tasks["total"]
    assert chain(add.s(1, 1), plain.s(2), add.s(3)).apply_async().get() == 7
    assert group([add.s(number) for number in range(3)] + [plain.s(3)]).apply_async().get() == [1, 2, 3, 4]
    assert chord([add.s(number) for number in range(4)], app=app)(total.s()).get() == 10


def test_a_task_is_called_as_a_function(app):
    assert app.tasks["add"](1, 2) == 3
    assert app.tasks["plain_add"](1, 2) == 3
    with pytest.raises(KeyError, match="why"):
        app.tasks["fail"]("why")


async def test_a_call_inside_a_running_loop_says_what_to_do_instead(app):
    """It would block the loop. Nor is a coroutine left that nobody awaits: its warning would fail this test."""
    with pytest.raises(RuntimeError, match=HINT):
        app.tasks["add"](1, 2)
    for result in (app.tasks["add"].delay(1, 2), app.tasks["add"].apply((1, 2))):
        assert result.state == "FAILURE"
        with pytest.raises(RuntimeError, match=HINT):
            result.get()
    assert await asyncio.to_thread(app.tasks["add"], 1, 2) == 3
    assert app.tasks["plain_add"].delay(1, 2).get() == 3


async def test_async_run_is_awaited_inside_a_running_loop(app):
    add = app.tasks["add"].async_run
    assert await asyncio.gather(*(add(number) for number in range(10))) == [*range(1, 11)]
    assert (await app.tasks["look"].async_run())[0] is None  # called directly, without a request
    with pytest.raises(KeyError, match="why"):
        await app.tasks["fail"].async_run("why")


def test_each_call_ends_what_its_body_started(app):
    """Its loop is its own and closed behind it: nothing runs on between two calls."""
    ended = []

    @app.task(name="leave_child", shared=False)
    async def leave_child():
        async def child():
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(asyncio.get_running_loop())

        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        return task

    for number in range(1, 4):
        assert leave_child.delay().get().cancelled()
        assert len(ended) == number
    assert all(loop.is_closed() for loop in ended)
    assert len({id(loop) for loop in ended}) == 3
