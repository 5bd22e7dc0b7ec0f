"""The one way from a source to its payload: what is tried again, for how long, and what it may hold meanwhile."""

import asyncio
import base64
import logging
import threading

import numpy as np
import pytest

from legit_embedding.config import Settings, variable_name
from legit_embedding.errors import (
    ConfigurationError,
    InvalidItemError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnavailableError,
)
from legit_embedding.sources import Sources, reader
from legit_embedding.sources.url import RetryAfterError
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock, settle
from legit_embedding.values import FileSource, InlineSource, ShmSource, TextSource, UrlSource

URL = UrlSource("https://a.example/x")
LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No setting comes from the machine on which the tests run."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_name(field), raising=False)


class ScriptedFetcher:
    """Answers with what a test has put into `script`, in order; holds every fetch while `gate` is closed."""

    def __init__(self, script, **_):
        self.script = script
        self.asked = []
        self.under_way = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, url):
        self.asked.append(url)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.gate.wait()
            outcome = self.script.pop(0)
        finally:
            self.under_way -= 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.script = None


@pytest.fixture
def script(monkeypatch):
    """What the next fetches give."""
    outcomes = []
    monkeypatch.setattr(reader, "Fetcher", lambda **options: ScriptedFetcher(outcomes, **options))
    return outcomes


@pytest.fixture
async def make():
    """Sources under some settings, on a clock that stands still; closed when the test is over."""
    opened = []

    async def build(**settings):
        given = {"max_source_bytes": LIMIT, "retries": 3, "retry_base_s": 1.0, "retry_max_s": 8.0} | settings
        sources = Sources(settings=Settings(**given), clock=FakeClock(), metrics=Metrics())
        opened.append(await sources.__aenter__())
        return sources

    yield build
    for sources in opened:
        await sources.__aexit__(None, None, None)


def clock(sources):
    return sources._clock


def retries(sources):
    return sources._metrics.snapshot()["retries"]


# -- the kinds of source -----------------------------------------------------------------------------------------------


async def test_a_text_is_its_own_payload(make):
    assert await (await make()).read(TextSource("a text")) == "a text"


@pytest.mark.parametrize("nbytes", [10, reader.DECODE_INLINE_BELOW, LIMIT])
async def test_inline_data_is_decoded_whatever_its_size(make, nbytes):
    """Small on the loop, large on a thread."""
    content = bytes(nbytes)
    assert await (await make()).read(InlineSource(base64.b64encode(content).decode())) == content


@pytest.mark.parametrize("nbytes", [100, 100_000])
async def test_inline_data_above_the_limit_is_too_large(make, nbytes):
    sources = await make(max_source_bytes=nbytes - 1)
    with pytest.raises(SourceTooLargeError):
        await sources.read(InlineSource(base64.b64encode(bytes(nbytes)).decode()))


async def test_a_file_is_read_on_a_thread_of_its_own(make, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"content")
    seen = []
    original = reader.read_regular_file

    def spy(path, **options):
        seen.append(threading.current_thread().name)
        return original(path, **options)

    monkeypatch.setattr(reader, "read_regular_file", spy)
    assert await (await make(allowed_roots=str(tmp_path))).read(FileSource(str(tmp_path / "a"))) == b"content"
    assert seen[0].startswith("legit-read")


async def test_a_tensor_is_read_from_shared_memory(make, tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(12)))
    tensor = await (await make(shm_root=tmp_path)).read(ShmSource(str(tmp_path / "a"), "uint8", (3, 2, 2)))
    np.testing.assert_array_equal(tensor, np.arange(12, dtype=np.uint8).reshape(3, 2, 2))


async def test_a_url_is_fetched(make, script):
    script.append(b"image")
    assert await (await make()).read(URL) == b"image"


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        (FileSource("/etc/passwd"), "LEGIT_ALLOWED_ROOTS"),
        (ShmSource("/dev/shm/a", "uint8", (3, 1, 1)), "LEGIT_SHM_ROOT"),
        (UrlSource("http://127.0.0.1/"), "LEGIT_ALLOWED_HOSTS"),
        (UrlSource("https://a.example/"), "LEGIT_ALLOWED_HOSTS"),
    ],
)
async def test_nothing_is_open_by_default(make, source, setting):
    """And what is refused reserves nothing and is not tried again."""
    sources = await make()
    assert await sources.reserve_bytes([source]) == 0
    with pytest.raises(SourceNotAllowedError, match=setting):
        await sources.read(source)
    assert retries(sources) == 0


async def test_an_unusable_host_rule_stops_the_start(make):
    with pytest.raises(ConfigurationError, match="LEGIT_ALLOWED_HOSTS"):
        await make(allowed_hosts="https://a.example")


# -- trying again ------------------------------------------------------------------------------------------------------


async def test_a_transient_failure_is_tried_again(make, script):
    script += [SourceUnavailableError("503"), SourceUnavailableError("503"), b"image"]
    sources = await make()
    reading = asyncio.create_task(sources.read(URL))
    await clock(sources).advance(100)
    assert await reading == b"image"
    assert retries(sources) == 2


async def test_the_last_failure_is_told_once_the_tries_are_used_up(make, script):
    script += [SourceUnavailableError(f"failure {number}") for number in range(4)]
    sources = await make(retries=3)
    reading = asyncio.create_task(sources.read(URL))
    await clock(sources).advance(100)
    with pytest.raises(SourceUnavailableError, match="failure 3"):
        await reading
    assert (script, retries(sources)) == ([], 3)


async def test_without_retries_one_failure_is_enough(make, script):
    script.append(SourceUnavailableError("503"))
    sources = await make(retries=0)
    with pytest.raises(SourceUnavailableError):
        await sources.read(URL)
    assert retries(sources) == 0


@pytest.mark.parametrize("error", [SourceNotFoundError, SourceNotAllowedError, SourceTooLargeError, InvalidItemError])
async def test_what_is_permanent_is_not_tried_again(make, script, error):
    script += [error("no"), b"never asked for"]
    sources = await make()
    with pytest.raises(error):
        await sources.read(URL)
    assert (len(script), retries(sources)) == (1, 0)


async def test_a_server_that_says_how_long_is_given_that_time(make, script):
    """Longer than the pause of our own would be, which is 1 s at most here."""
    script += [RetryAfterError("429", retry_after_s=5.0), b"image"]
    sources = await make()
    reading = asyncio.create_task(sources.read(URL))
    await clock(sources).advance(4.9)
    assert not reading.done()
    await clock(sources).advance(0.2)
    assert await reading == b"image"


async def test_no_server_may_ask_for_more_than_the_longest_pause(make, script):
    script += [RetryAfterError("429", retry_after_s=float("inf")), b"image"]
    sources = await make(retry_max_s=8.0)
    reading = asyncio.create_task(sources.read(URL))
    await clock(sources).advance(7.9)
    assert not reading.done()
    await clock(sources).advance(0.2)
    assert await reading == b"image"


async def test_a_file_that_cannot_be_read_now_is_tried_again(make, tmp_path, monkeypatch):
    results = [SourceUnavailableError("is being written"), b"content"]

    def scripted(*_, **__):
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(reader, "read_regular_file", scripted)
    sources = await make(allowed_roots=str(tmp_path))
    failed = asyncio.Event()
    monkeypatch.setattr(sources._metrics, "retry", lambda _: failed.set())
    reading = asyncio.create_task(sources.read(FileSource(str(tmp_path / "a"))))
    await failed.wait()
    await clock(sources).advance(1)
    assert await reading == b"content"


async def test_no_more_fetches_are_under_way_than_allowed_and_a_pause_takes_no_place(make, script):
    script += [SourceUnavailableError("503"), SourceUnavailableError("503"), b"c", b"d", b"a", b"b"]
    sources = await make(fetch_concurrency=2)
    fetcher = sources._fetcher
    fetcher.gate.clear()
    readings = [asyncio.create_task(sources.read(UrlSource(f"https://{name}.example/"))) for name in "abcd"]
    await settle()
    assert len(fetcher.asked) == 2
    fetcher.gate.set()
    await settle()
    assert {reading.result() for reading in readings if reading.done()} == {b"c", b"d"}
    await clock(sources).advance(1)
    assert {await reading for reading in readings} == {b"a", b"b", b"c", b"d"}
    assert fetcher.most == 2


async def test_a_cancelled_read_gives_its_place_back(make, script):
    script.append(b"image")
    sources = await make(fetch_concurrency=1)
    sources._fetcher.gate.clear()
    first = asyncio.create_task(sources.read(URL))
    await settle()
    first.cancel()
    sources._fetcher.gate.set()
    assert await sources.read(URL) == b"image"
    with pytest.raises(asyncio.CancelledError):
        await first


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_what_is_reserved_covers_what_is_read(make, tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 500)
    sources = await make(allowed_roots=str(tmp_path), allowed_hosts="a.example", shm_root=tmp_path)
    assert await sources.reserve_bytes([TextSource("🌫" * 10)]) >= len(("🌫" * 10).encode())
    assert 750 <= await sources.reserve_bytes([InlineSource("A" * 1000)]) < 800
    assert await sources.reserve_bytes([FileSource(str(tmp_path / "a"))]) == 500
    assert await sources.reserve_bytes([ShmSource(str(tmp_path / "a"), "float32", (3, 4, 5))]) == 240
    assert await sources.reserve_bytes([URL]) == LIMIT


async def test_a_file_that_cannot_be_looked_at_counts_as_the_most_it_may_be(make, tmp_path):
    sources = await make(allowed_roots=str(tmp_path))
    for path in (tmp_path / "none", tmp_path.parent / "elsewhere", "/etc/passwd"):
        assert await sources.reserve_bytes([FileSource(str(path))]) == LIMIT


async def test_nothing_is_reserved_beyond_the_limit_that_a_source_may_have(make, tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    sources = await make(allowed_roots=str(tmp_path), shm_root=tmp_path, max_source_bytes=1000)
    for source in (
        FileSource(str(tmp_path / "huge")),
        InlineSource("A" * 100_000),
        ShmSource(str(tmp_path / "huge"), "float32", (10**4000, 10**4000, 3)),
    ):
        assert await sources.reserve_bytes([source]) == 1000


# -- removing ----------------------------------------------------------------------------------------------------------


async def test_discard_removes_a_file_under_the_root(make, tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 12)
    sources = await make(shm_root=tmp_path)
    for _ in range(2):
        await sources.discard(ShmSource(str(tmp_path / "a"), "uint8", (3, 2, 2)))
    assert not (tmp_path / "a").exists()


async def test_discard_leaves_alone_what_may_not_be_read(make, tmp_path):
    """Quietly: its entry has said so already, and its task is acknowledged."""
    (tmp_path / "root").mkdir()
    (tmp_path / "a").write_bytes(b"x")
    source = ShmSource(str(tmp_path / "a"), "uint8", (3, 2, 2))
    for settings in ({}, {"shm_root": tmp_path / "root"}):
        await (await make(**settings)).discard(source)
    assert (tmp_path / "a").exists()


async def test_a_file_that_cannot_be_removed_is_logged(make, tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    sources = await make(shm_root=tmp_path)
    with caplog.at_level(logging.WARNING):
        await sources.discard(ShmSource(str(tmp_path / "folder"), "uint8", (3, 2, 2)))
    assert "shared memory stays behind" in caplog.text
    assert "folder" in caplog.text
