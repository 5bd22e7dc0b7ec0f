"""Files in shared memory are found by their task's arguments and removed; nothing else is."""

import asyncio

import pytest

from legit_embedding.config import load_settings
from legit_embedding.contract import Names
from legit_embedding.sources import Sources
from legit_embedding.sources.leftovers import Leftovers
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock
from legit_embedding.testing.reports import NullReporter
from legit_embedding.values import ShmSource


class World:
    """Leftovers of a worker with these settings, and a file that a task may name."""

    def __init__(self, folder, **settings):
        values = load_settings(**settings)
        self.file = folder / "tensor"
        self.file.write_bytes(bytes(12))
        self.reporter = NullReporter()
        self.sources = Sources(settings=values, clock=FakeClock(), metrics=Metrics())
        self.leftovers = Leftovers(
            settings=values, names=Names.load(None), sources=self.sources, reporter=self.reporter
        )

    @property
    def envelope(self):
        item = {"shm": {"path": str(self.file), "dtype": "uint8", "shape": [3, 2, 2]}}
        return {"items": [item, None, {"path": "/a"}]}


@pytest.mark.parametrize("kind", ["images", "prepared_images"])
async def test_a_tasks_files_are_removed_and_a_second_time_does_no_harm(tmp_path, kind):
    world = World(tmp_path, shm_root=tmp_path)
    async with world.sources:
        for args, kwargs in (([world.envelope], {}), ([], world.envelope)):
            files = world.leftovers.files_of(kind, args, kwargs)
            assert files == (ShmSource(str(world.file), "uint8", (3, 2, 2)),)
            world.leftovers.discard(files)
            await world.leftovers.close()
            assert not world.file.exists()
    assert world.reporter.causes == []


async def test_without_a_root_and_for_texts_there_are_none(tmp_path):
    world = World(tmp_path)
    assert world.leftovers.files_of("images", [world.envelope], {}) == ()
    assert World(tmp_path, shm_root=tmp_path).leftovers.files_of("texts", [world.envelope], {}) == ()


@pytest.mark.parametrize("args", [["no object"], [{}], [{"items": []}], [1, 2]])
async def test_an_envelope_that_cannot_be_understood_names_none(tmp_path, args):
    assert World(tmp_path, shm_root=tmp_path).leftovers.files_of("images", args, {}) == ()


async def test_arguments_that_nobody_foresaw_are_reported_and_fail_no_ack(tmp_path):
    world = World(tmp_path, shm_root=tmp_path)
    assert world.leftovers.files_of("images", None, {}) == ()
    assert world.reporter.causes == ["discard:TypeError"]


async def test_a_file_outside_the_root_stays_and_is_no_trouble(tmp_path):
    (tmp_path / "root").mkdir()
    world = World(tmp_path, shm_root=tmp_path / "root")
    async with world.sources:
        world.leftovers.discard(world.leftovers.files_of("images", [world.envelope], {}))
        await world.leftovers.close()
    assert (world.file.exists(), world.reporter.causes) == (True, [])


async def test_a_bug_in_removing_one_is_reported(tmp_path, monkeypatch):
    world = World(tmp_path, shm_root=tmp_path)

    async def fail(_):
        await asyncio.sleep(0)
        raise ZeroDivisionError

    monkeypatch.setattr(world.sources, "discard", fail)
    async with world.sources:
        world.leftovers.discard(world.leftovers.files_of("images", [world.envelope], {}))
        await world.leftovers.close()
    assert world.reporter.causes == ["discard:ZeroDivisionError"]
