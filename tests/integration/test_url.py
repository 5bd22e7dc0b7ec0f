"""URLs against a real server on loopback, and against addresses that must never be dialled."""

import asyncio
import gzip
import socket
import tracemalloc
import zlib
from asyncio.selector_events import BaseSelectorEventLoop
from contextlib import asynccontextmanager
from functools import cache
from itertools import count

import pytest
from aiohttp import web

from legit_embedding.config import Settings
from legit_embedding.errors import (
    InvalidItemError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnavailableError,
)
from legit_embedding.sources import Sources
from legit_embedding.sources.hosts import HostPolicy, HostRule
from legit_embedding.sources.url import Fetcher, RetryAfterError
from legit_embedding.telemetry.metrics import Metrics
from legit_embedding.testing.clock import FakeClock
from legit_embedding.values import UrlSource

pytestmark = pytest.mark.timeout(60)

MIB = 1024 * 1024
LIMIT = 100_000
IMAGE = bytes(range(256)) * 64


@cache
def packed_zeros():
    """64 MiB of them, in less than the limit."""
    packed = gzip.compress(bytes(64 * MIB))
    assert len(packed) < LIMIT
    return packed


class Site:
    """A web server on 127.0.0.1; `requests` are those that reached it."""

    def __init__(self):
        self.requests = []
        self.port = 0
        self.sent = 0
        self.closing = asyncio.Event()

    @property
    def place(self):
        return f"127.0.0.1:{self.port}"

    def url(self, path):
        return f"http://{self.place}{path}"

    async def answer(self, request):
        self.requests.append(request)
        handler = getattr(self, request.match_info["what"].replace("-", "_"))
        return await handler(request)

    async def image(self, _):
        return web.Response(body=IMAGE, content_type="image/png")

    async def status(self, request):
        return web.Response(status=int(request.query["code"]), headers=dict(request.query))

    async def redirect(self, request):
        return web.Response(status=int(request.query.get("code", 302)), headers={"Location": request.query["to"]})

    async def nowhere(self, _):
        return web.Response(status=302)

    async def chain(self, request):
        left = int(request.query["left"])
        raise web.HTTPFound(f"/chain?left={left - 1}" if left else "/image")

    async def loop(self, _):
        raise web.HTTPFound("/loop")

    async def slow_start(self, _):
        await self.closing.wait()
        return web.Response()

    async def slow_body(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.01)

    async def slow_chain(self, _):
        await asyncio.sleep(0.15)
        raise web.HTTPFound("/slow-chain")

    async def sized(self, request):
        """As many bytes as asked for, with their number said first."""
        return web.Response(body=bytes(int(request.query["n"])))

    async def endless(self, request):
        """Chunks until the client has had enough."""
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(bytes(16 * 1024))
            self.sent += 16 * 1024

    async def exactly(self, request):
        """Chunks, up to so many bytes."""
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(bytes(int(request.query["n"])))
        await response.write_eof()
        return response

    async def cut(self, request):
        """Less than was promised, and then nothing."""
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"only this")
        request.transport.close()
        return response

    async def compressed(self, request):
        how = request.query["how"]
        body = gzip.compress(IMAGE) if how == "gzip" else zlib.compress(IMAGE)
        return web.Response(body=body, headers={"Content-Encoding": how})

    async def bomb(self, _):
        return web.Response(body=packed_zeros(), headers={"Content-Encoding": "gzip"})

    async def rubbish(self, request):
        return web.Response(body=b"not gzip at all", headers={"Content-Encoding": "gzip"})

    async def cookie(self, request):
        answer = web.Response(body=request.headers.get("Cookie", "none").encode())
        answer.set_cookie("session", "1")
        return answer

    async def headers(self, request):
        return web.json_response(dict(request.headers))


@pytest.fixture
async def site():
    """The server; it is gone when the test is over."""
    made = Site()
    app = web.Application()
    app.router.add_get("/{what}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    tcp = web.TCPSite(runner, "127.0.0.1", 0)
    await tcp.start()
    made.port = runner.addresses[0][1]
    yield made
    made.closing.set()
    await runner.cleanup()


@asynccontextmanager
async def fetcher(*hosts, max_bytes=LIMIT, timeout_s=20.0):
    policy = HostPolicy([HostRule.parse(host) for host in hosts])
    async with Fetcher(policy=policy, max_bytes=max_bytes, timeout_s=timeout_s, concurrency=8) as opened:
        yield opened


async def fetch(site, path, **options):
    async with fetcher(site.place, **options) as opened:
        return await opened.fetch(site.url(path))


async def failure(site, path, kind, **options):
    """What a fetch fails with, told exactly."""
    with pytest.raises(kind) as caught:
        await fetch(site, path, **options)
    return str(caught.value)


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_a_body_comes_as_it_is(site):
    assert await fetch(site, "/image") == IMAGE


@pytest.mark.parametrize("code", [404, 410, 400, 204, 206, 304, 418])
async def test_an_answer_that_will_not_change_is_not_found(site, code):
    assert f"the server answered {code}" in await failure(site, f"/status?code={code}", SourceNotFoundError)


@pytest.mark.parametrize("code", [401, 403, 451])
async def test_an_answer_of_a_server_that_refuses_is_not_allowed(site, code):
    assert f"the server answered {code}" in await failure(site, f"/status?code={code}", SourceNotAllowedError)


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_an_answer_of_a_server_in_trouble_is_transient(site, code):
    assert f"the server answered {code}" in await failure(site, f"/status?code={code}", SourceUnavailableError)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7.0), ("0", 0.0), ("-1", 0.0), ("soon", 0.0), ("%C2%B2", 0.0), ("9" * 400, float("inf"))],
)
async def test_a_server_may_say_for_how_long(site, said, seconds):
    with pytest.raises(RetryAfterError) as caught:
        await fetch(site, f"/status?code=429&Retry-After={said}")
    assert caught.value.retry_after_s == seconds


async def test_a_busy_server_is_asked_again_when_it_said(site):
    """Through the whole reader: two refusals, then the image."""
    numbers = count()

    async def busy(_):
        return await site.image(_) if next(numbers) == 2 else web.Response(status=429, headers={"Retry-After": "3"})

    site.busy = busy
    clock = FakeClock()
    settings = Settings(allowed_hosts=site.place, retry_base_s=0.1, retry_max_s=5.0)
    async with Sources(settings=settings, clock=clock, metrics=Metrics()) as sources:
        reading = asyncio.create_task(sources.read(UrlSource(site.url("/busy"))))
        for asked in (1, 2):
            while len(site.requests) < asked or not clock.sleeping:
                await asyncio.sleep(0.005)
            await clock.advance(2.0)
            assert not reading.done()
            await clock.advance(1.5)
        assert await reading == IMAGE


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/slow-start", "/slow-body", "/slow-chain"])
async def test_the_time_is_for_the_whole_fetch(site, path):
    """However it is spent: waiting, dripping, or going from one place to the next."""
    assert "no whole answer in 0.3 s" in await failure(site, path, SourceUnavailableError, timeout_s=0.3)


async def test_a_body_that_breaks_off_is_transient(site):
    assert "/cut" in await failure(site, "/cut", SourceUnavailableError)


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sized", "/exactly"])
async def test_the_limit_is_exact_with_and_without_a_content_length(site, path):
    assert len(await fetch(site, f"{path}?n={LIMIT}")) == LIMIT
    assert "LEGIT_MAX_SOURCE_BYTES" in await failure(site, f"{path}?n={LIMIT + 1}", SourceTooLargeError)


async def test_a_body_without_end_is_left_at_the_limit(site):
    await failure(site, "/endless", SourceTooLargeError)
    assert site.sent < 64 * MIB


# -- compression -------------------------------------------------------------------------------------------------------


async def test_images_are_not_asked_for_in_compressed_form(site):
    assert b'"Accept-Encoding": "identity"' in await fetch(site, "/headers")


@pytest.mark.parametrize("how", ["gzip", "deflate"])
async def test_a_body_that_is_compressed_all_the_same_is_unpacked(site, how):
    assert await fetch(site, f"/compressed?how={how}") == IMAGE


async def test_a_bomb_is_left_at_the_limit_and_never_unpacked_in_memory(site):
    """The limit is for what comes out, whatever the header says of what goes in."""
    packed_zeros()
    tracemalloc.start()
    try:
        await failure(site, "/bomb", SourceTooLargeError)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


async def test_what_cannot_be_unpacked_is_an_error_of_ours(site):
    await failure(site, "/rubbish", SourceUnavailableError)


# -- redirects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(site, code):
    assert await fetch(site, f"/redirect?code={code}&to=/image") == IMAGE
    assert await fetch(site, f"/redirect?code={code}&to={site.url('/image')}") == IMAGE


async def test_as_many_redirects_as_allowed_and_not_one_more(site):
    assert await fetch(site, "/chain?left=4") == IMAGE
    assert "more than 5 redirects" in await failure(site, "/chain?left=5", SourceNotFoundError)


async def test_a_loop_of_redirects_ends(site):
    assert "more than 5 redirects" in await failure(site, "/loop", SourceNotFoundError)
    assert len(site.requests) == 6


@pytest.mark.parametrize(
    "to",
    [
        "https://evil.example/",
        "//evil.example/x",
        "http://127.0.0.1:1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "file:///etc/passwd",
        "http://user:password@127.0.0.1/",
        "http://[::1",
        "http://127.0.0.1:port/",
        "http://[]@",
    ],
)
async def test_a_redirect_leads_nowhere_that_a_message_could_not(site, to):
    """The item's own URL was fine: that is not its fault."""
    async with fetcher(site.place) as opened:
        with pytest.raises(SourceNotAllowedError):
            await opened.fetch(f"{site.url('/redirect')}?to={to}")
    assert len(site.requests) == 1


async def test_a_redirect_without_a_place_is_an_answer_like_another(site):
    assert "the server answered 302" in await failure(site, "/nowhere", SourceNotFoundError)


async def test_nothing_is_remembered_between_fetches(site):
    async with fetcher(site.place) as opened:
        assert [await opened.fetch(site.url("/cookie")) for _ in range(2)] == [b"none", b"none"]


# -- no server ---------------------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_transient():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, but nobody listens
        place = f"127.0.0.1:{reserved.getsockname()[1]}"
        async with fetcher(place) as opened:
            with pytest.raises(SourceUnavailableError, match=place):
                await opened.fetch(f"http://{place}/")


async def test_a_server_that_speaks_no_http_is_transient():
    async def babble(reader, writer):
        await reader.readline()
        writer.write(b"+PONG\r\n" * 10)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, fetcher(place) as opened:
        with pytest.raises(SourceUnavailableError):
            await opened.fetch(f"http://{place}/")


async def test_a_server_without_tls_is_transient(site):
    async with fetcher(site.place) as opened:
        with pytest.raises(SourceUnavailableError):
            await opened.fetch(f"https://{site.place}/image")


async def test_a_host_that_does_not_resolve_is_transient(resolving):
    resolving["gone.example"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    async with fetcher("gone.example") as opened:
        with pytest.raises(SourceUnavailableError, match=r"gone\.example"):
            await opened.fetch("http://gone.example/")


async def test_a_host_that_is_no_name_is_an_invalid_item():
    async with fetcher("*.example") as opened:
        for host in ("a" * 64 + ".example", ".example", "a..example"):
            with pytest.raises((InvalidItemError, SourceNotAllowedError)):
                await opened.fetch(f"http://{host}/")


# -- what must not be dialled ------------------------------------------------------------------------------------------


@pytest.fixture
def resolving(monkeypatch):
    """Names that resolve as a test says; every other one as ever."""
    table = {}
    original = socket.getaddrinfo

    def resolve(host, port, *args, **kwargs):
        found = table.get(host)
        if found is None:
            return original(host, port, *args, **kwargs)
        if isinstance(found, Exception):
            raise found
        return [answer for address in found for answer in original(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return table


@pytest.fixture
def dialled(monkeypatch):
    """The addresses to which any socket of this process was connected."""
    seen = []
    original = BaseSelectorEventLoop.sock_connect

    async def sock_connect(self, connection, address):
        seen.append(address[:2])
        return await original(self, connection, address)

    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)
    return seen


SPELLINGS = [
    "127.0.0.1",
    "localhost",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "017700000001",
    "0177.0.0.1",
    "①②⑦.⓪.⓪.①",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "0.0.0.0",
    "0",
    "[::]",
    "169.254.169.254",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "10.0.0.1",
]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_an_address_that_no_rule_names_is_refused_unresolved(site, dialled, host):
    async with fetcher("a.example", "*.b.example") as opened:
        with pytest.raises(SourceNotAllowedError, match="LEGIT_ALLOWED_HOSTS"):
            await opened.fetch(f"http://{host}:{site.port}/image")
    assert (dialled, site.requests) == ([], [])


@pytest.mark.parametrize("host", ["localhost", "0x7f000001", "127.1", "2130706433", "017700000001", "0177.0.0.1", "0"])
async def test_a_name_that_leads_inside_is_refused_without_a_connection(site, dialled, host):
    """A rule lets the name through; what it resolves to is looked at once more, where it would be dialled.

    Some versions of aiohttp themselves make nothing of an address in an old spelling.
    """
    async with fetcher(host) as opened:
        with pytest.raises((SourceNotAllowedError, InvalidItemError), match=r"not public|not a canonical IPv4"):
            await opened.fetch(f"http://{host}:{site.port}/image")
    assert (dialled, site.requests) == ([], [])


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1", "127.0.0.1"],
        ["10.0.0.1", "192.168.0.1", "fd00::1"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
        ["100.64.0.1"],
    ],
)
async def test_a_name_that_resolves_inside_is_refused_for_good(site, resolving, dialled, addresses):
    """One address or several; and as an answer that does not change, not as one that passes."""
    resolving["rebound.a.example"] = addresses
    async with fetcher("*.a.example") as opened:
        with pytest.raises(SourceNotAllowedError, match="not public"):
            await opened.fetch(f"http://rebound.a.example:{site.port}/image")
    assert (dialled, site.requests) == ([], [])


async def test_a_name_that_changes_its_address_is_refused_at_the_next_connection(site, resolving, dialled):
    """The address dialled is the one that counts, not one that was looked up before."""
    resolving["a.example"] = ["127.0.0.1"]
    async with fetcher("a.example", f"127.0.0.2:{site.port}") as opened:
        with pytest.raises(SourceNotAllowedError, match="not public"):
            await opened.fetch(f"http://a.example:{site.port}/image")
    assert dialled == []


async def test_a_redirect_to_a_name_that_leads_inside_is_refused(site, resolving, dialled):
    resolving["inside.example"] = ["127.0.0.1", "::1"]
    async with fetcher(site.place, "inside.example") as opened:
        with pytest.raises(SourceNotAllowedError, match="not public"):
            await opened.fetch(f"{site.url('/redirect')}?to=http://inside.example/")
    assert dialled == [("127.0.0.1", site.port)]


async def test_an_address_is_open_on_the_port_that_the_rule_names(site, dialled):
    async with fetcher("127.0.0.1:1", "localhost") as opened:
        for url in (f"http://127.0.0.1:{site.port}/image", f"http://localhost:{site.port}/image"):
            with pytest.raises(SourceNotAllowedError):
                await opened.fetch(url)
    assert dialled == []


async def test_a_proxy_from_the_environment_is_not_used(site, monkeypatch):
    """It would dial in our place."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await fetch(site, "/image") == IMAGE


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://user:password@127.0.0.1/", "127.0.0.1", "http://[::1"]
)
async def test_what_is_no_plain_http_url_is_an_invalid_item(dialled, url):
    async with fetcher("127.0.0.1") as opened:
        with pytest.raises(InvalidItemError):
            await opened.fetch(url)
    assert dialled == []


# -- opening and closing -----------------------------------------------------------------------------------------------


async def test_a_fetcher_that_is_not_open_says_so(site):
    async with fetcher(site.place) as opened:
        pass
    policy = HostPolicy([HostRule.parse(site.place)])
    never = Fetcher(policy=policy, max_bytes=LIMIT, timeout_s=5, concurrency=1)
    for closed in (opened, never):
        with pytest.raises(RuntimeError, match="not open"):
            await closed.fetch(site.url("/image"))


async def test_closing_ends_a_fetch_that_is_under_way(site):
    async with fetcher(site.place) as opened:
        fetching = asyncio.create_task(opened.fetch(site.url("/slow-start")))
        while not site.requests:
            await asyncio.sleep(0.005)
    with pytest.raises(SourceUnavailableError):
        await fetching


async def test_a_cancelled_fetch_is_cancelled(site):
    async with fetcher(site.place) as opened:
        fetching = asyncio.create_task(opened.fetch(site.url("/slow-start")))
        while not site.requests:
            await asyncio.sleep(0.005)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert await opened.fetch(site.url("/image")) == IMAGE
