"""Canvases: what tasks call, and in which order."""

import asyncio

from celery import chain, chord, group

from conformance_app import app, note


@app.task
async def add(a, b):
    await asyncio.sleep(0)
    return a + b


@app.task
def plain_add(a, b):
    return a + b


@app.task
async def double(number):
    await asyncio.sleep(0)
    return 2 * number


@app.task
def plain_double(number):
    return 2 * number


@app.task
async def total(numbers):
    await asyncio.sleep(0)
    return sum(numbers)


@app.task
def plain_total(numbers):
    return sum(numbers)


@app.task
async def fail(*args):
    await asyncio.sleep(0)
    raise KeyError("broken")


@app.task
def plain_fail(*args):
    raise KeyError("broken")


@app.task
async def tell(value, key):
    await asyncio.sleep(0)
    note(key, value)
    return value


@app.task
def plain_tell(value, key):
    note(key, value)
    return value


@app.task
async def tell_failure(request, exc, traceback, key):
    """A callback of failures in the form that is called where the task has failed."""
    await asyncio.sleep(0)
    note(key, f"{request.id} {type(exc).__name__} {'Traceback' in str(traceback)}")


@app.task
def plain_tell_failure(request, exc, traceback, key):
    note(key, f"{request.id} {type(exc).__name__} {'Traceback' in str(traceback)}")


@app.task(bind=True)
async def tell_failed_id(self, task_id):
    """A callback of failures in the old form, sent as a task of its own."""
    await asyncio.sleep(0)
    note(self.request.root_id, task_id)


@app.task(bind=True)
def plain_tell_failed_id(self, task_id):
    note(self.request.root_id, task_id)


@app.task(bind=True)
async def family(self):
    await asyncio.sleep(0)
    return [self.request.root_id, self.request.parent_id]


# -- sent from inside a body -------------------------------------------------------------------------------------------


@app.task
async def send():
    """What it sends by `delay`, by `apply_async`, and from two children at the same time."""

    async def child():
        await asyncio.sleep(0)
        return family.delay().id

    return [family.delay().id, family.apply_async().id, *await asyncio.gather(child(), child())]


@app.task
def plain_send():
    return [family.delay().id, family.apply_async().id]


def _canvas(form):
    return {
        "chain": lambda: chain(add.s(1, 2), plain_double.s(), add.s(1)),
        "group": lambda: group(add.s(number, 1) for number in range(4)),
        "chord": lambda: chord((add.s(number, 1) for number in range(4)), total.s()),
        "nested": lambda: chain(add.s(1, 2), group(add.s(1), chain(plain_add.s(2), double.s())), total.s()),
    }[form]()


@app.task
async def send_canvas(form):
    await asyncio.sleep(0)
    return _canvas(form).apply_async().as_tuple()


@app.task
def plain_send_canvas(form):
    return _canvas(form).apply_async().as_tuple()


# -- replaced ----------------------------------------------------------------------------------------------------------


def _replacement(form):
    return add.s(1, 2) if form == "task" else _canvas(form)


@app.task(bind=True)
async def replace(self, form):
    await asyncio.sleep(0)
    return self.replace(_replacement(form))


@app.task(bind=True)
def plain_replace(self, form):
    return self.replace(_replacement(form))


@app.task(bind=True)
async def replace_again(self, times):
    await asyncio.sleep(0)
    return self.replace(replace_again.s(times - 1) if times else add.s(1, 2))


@app.task(bind=True)
def plain_replace_again(self, times):
    return self.replace(plain_replace_again.s(times - 1) if times else add.s(1, 2))


@app.task(bind=True)
async def join_chord(self, number):
    await asyncio.sleep(0)
    self.add_to_chord(add.s(number, 100))
    return number


@app.task(bind=True)
def plain_join_chord(self, number):
    self.add_to_chord(add.s(number, 100))
    return number
