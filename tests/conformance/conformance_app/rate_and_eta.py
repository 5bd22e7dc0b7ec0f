"""Tasks that note when they run."""

import asyncio
import json
import time

from conformance_app import app, note


def _note_time(key, number):
    note(key, json.dumps([number, time.time()]))


@app.task
async def tell(key, number):
    await asyncio.sleep(0)
    _note_time(key, number)


@app.task
def plain_tell(key, number):
    _note_time(key, number)


@app.task(rate_limit="5/s")
async def tell_rarely(key, number):
    await asyncio.sleep(0)
    _note_time(key, number)


@app.task(rate_limit="5/s")
def plain_tell_rarely(key, number):
    _note_time(key, number)


@app.task(rate_limit="10/s")
async def tell_often(key, number):
    await asyncio.sleep(0)
    _note_time(key, number)


@app.task(rate_limit="10/s")
def plain_tell_often(key, number):
    _note_time(key, number)


@app.task(rate_limit="1/h")
async def tell_once(key, number):
    await asyncio.sleep(0)
    _note_time(key, number)


@app.task(rate_limit="1/h")
def plain_tell_once(key, number):
    _note_time(key, number)
