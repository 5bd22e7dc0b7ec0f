"""The demo on a server that others use, and the demo, interrupted: whatever it started is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import environment_without_site_settings
from tests.acceptance.site import TEXTS, Site


def command_lines():
    """Process id to (parent's id, command line) of everything that runs."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(folder.name)] = (parent, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has ended meanwhile
    return found


def descendants(pid):
    """The command lines of everything that `pid` started, by process id."""
    processes = command_lines()
    family = {pid}
    while True:
        more = {child for child, (parent, _) in processes.items() if parent in family} - family
        if not more:
            return {child: processes[child][1] for child in family - {pid}}
        family |= more


def until(condition, timeout_s=60):
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads the process table from /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_everything_it_started(number, tmp_path):
    """Ctrl-C, or a kill, while the worker loads its models."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "demo"],
            stdout=output,
            stderr=output,
            env={**environment_without_site_settings(), "TMPDIR": str(tmp_path)},
            start_new_session=True,
        )

    def server_and_worker():
        family = descendants(demo.pid)
        both = any("valkey" in line or "redis" in line for line in family.values())
        return family if both and any(" worker " in line for line in family.values()) else None

    try:
        family = until(server_and_worker)
        os.kill(demo.pid, number)
        assert demo.wait(60) == (130 if number == signal.SIGINT else 143), log.read_text()
    finally:
        demo.kill()
        demo.wait()
    until(lambda: not {pid for pid in family if pid in command_lines()}, 10)
    until(
        lambda: [path.name for path in tmp_path.iterdir()] == ["log"], 10
    )  # a guard may outlive the demo for a moment


@pytest.fixture
def busy_server():
    """A site's server: its URL, a client, and a task that waits for the site's own worker."""
    with EmbeddedServer() as server, redis.Redis.from_url(server.url()) as client:
        Site(server.url()).send(TEXTS, {"texts": ["not the demo's"], "reply_to": "site"})
        yield server.url(), client


def contents(client):
    """Every key with its value, byte for byte."""
    return {key: client.dump(key) for key in client.scan_iter()}


def demo_command(url, tmp_path):
    """What starts the demo on that server, as arguments of `subprocess`'s."""
    env = {**environment_without_site_settings(), "LEGIT_BROKER_URL": url, "TMPDIR": str(tmp_path)}
    return {"args": [sys.executable, "-m", "demo"], "stderr": subprocess.STDOUT, "env": env}


def test_a_demo_on_a_sites_server_takes_none_of_its_tasks_and_leaves_nothing(busy_server, tmp_path):
    url, client = busy_server
    before = contents(client)
    demo = subprocess.run(**demo_command(url, tmp_path), stdout=subprocess.PIPE, timeout=300, check=False)
    assert demo.returncode == 0, demo.stdout.decode()
    assert contents(client) == before
    assert client.llen("text_embedding") == 1


def test_a_demo_interrupted_at_work_leaves_nothing_on_a_sites_server(busy_server, tmp_path):
    url, client = busy_server
    before = contents(client)
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen(**demo_command(url, tmp_path), stdout=log, start_new_session=True)
    try:
        until(lambda: list(client.scan_iter("demo:*")))  # a queue or a stream
        os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(60) == 130, (tmp_path / "log").read_text()
    finally:
        demo.kill()
        demo.wait()
    assert contents(client) == before
