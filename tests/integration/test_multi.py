"""`celery multi` with two nodes whose pool is `legit_async`: daemons with pidfiles and logs of their own."""

import contextlib
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from celery import Celery

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import environment_without_site_settings
from tests import waiting
from tests.waiting import close_client

HERE = Path(__file__).parent
PATIENCE_S = 60
pytestmark = pytest.mark.timeout(300)  # several starts of two processes in a row

NODES = ["one@multi", "two@multi"]

# Daemons are nobody's children. Whatever happens to this process, this ends them once its standard input is closed.
GUARD = 'cat >/dev/null; for f in "$1"/*.pid; do [ -f "$f" ] && kill -KILL "$(cat "$f")" 2>/dev/null; done; true'


class Cluster:
    """The two nodes, and a producer."""

    def __init__(self, url, folder):
        self.folder = folder
        self.env = {**environment_without_site_settings(), "MULTI_APP_URL": url}
        self.app = Celery("client", broker=url, backend=url, set_as_current=False)
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def multi(self, command, *args):
        """What `celery multi <command>` wrote; it must succeed."""
        # `one two` and a host for both: the names that `NODES` lists.
        line = [sys.executable, "-m", "celery", "multi", command, "one", "two", "--hostname=multi", *args]
        line += [
            "-A",
            "multi_app",
            "-P",
            "legit_async",
            "-c",
            "10",
            "-l",
            "INFO",
            "--without-gossip",
            "--without-mingle",
        ]
        line += [f"--pidfile={self.folder}/%n.pid", f"--logfile={self.folder}/%n.log"]
        # To a file and not through a pipe: the daemons inherit what they are given, and it would never be closed.
        with (self.folder / "multi.out").open("w+") as out:
            done = subprocess.run(
                line, cwd=HERE, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=90, check=False
            )
            out.seek(0)
            said = out.read()
        assert done.returncode == 0, said
        return said

    def pids(self):
        """The process ids by node, of those that have a pidfile."""
        found = {}
        for name in NODES:
            with contextlib.suppress(FileNotFoundError, ValueError):  # gone, or just being written
                found[name] = int((self.folder / f"{name.partition('@')[0]}.pid").read_text())
        return found

    def log(self, name):
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / f"{name.partition('@')[0]}.log").read_text()
        return ""

    def wait_until_ready(self, times=1):
        for name in NODES:
            until(
                lambda name=name: self.log(name).count(f"{name} ready.") >= times,
                name,
                more=lambda name=name: self.log(name),
            )

    def send(self, name, *args):
        return self.app.send_task(f"multi_app.{name}", args=args)

    def where_twenty_meet(self, meeting):
        """The nodes on which twenty tasks ran that waited for one another: ten fit on a node."""
        results = [self.send("meet", meeting, 20) for _ in range(20)]
        return sorted(result.get(timeout=PATIENCE_S) for result in results)

    def close(self):
        close_client(self.app)
        self.redis.close()


until = functools.partial(waiting.until, timeout_s=PATIENCE_S)


def alive(pid):
    """Whether the process runs; one that has ended and that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def cluster(tmp_path):
    guard = subprocess.Popen(["/bin/sh", "-c", GUARD, "guard", tmp_path], stdin=subprocess.PIPE, start_new_session=True)
    try:
        with EmbeddedServer() as server:
            own = Cluster(server.url(), tmp_path)
            try:
                yield own
            finally:
                guard.communicate()
                own.close()
    finally:
        guard.kill()
        guard.communicate()


def test_two_nodes_start_run_tasks_restart_and_stop_warm(cluster):
    """Their pidfiles name them, tasks run on both, a restart changes both, and no task is lost on the way."""
    cluster.multi("start")
    cluster.wait_until_ready()
    first = cluster.pids()
    assert sorted(first) == NODES
    assert all(alive(pid) for pid in first.values())
    assert cluster.where_twenty_meet("before") == sorted(NODES * 10)

    cluster.multi("restart")
    cluster.wait_until_ready(times=2)
    second = cluster.pids()
    assert sorted(second) == NODES
    assert not set(first.values()) & set(second.values())
    assert not any(alive(pid) for pid in first.values())
    assert cluster.where_twenty_meet("after") == sorted(NODES * 10)

    cluster.multi("stopwait")
    assert cluster.pids() == {}
    assert not any(alive(pid) for pid in second.values())
    for name in NODES:
        assert "Traceback" not in cluster.log(name)
    assert (cluster.redis.hlen("unacked"), cluster.redis.llen("celery")) == (0, 0)


def test_stop_lets_running_tasks_finish(cluster):
    cluster.multi("start")
    cluster.wait_until_ready()
    pids = cluster.pids()
    results = [cluster.send("wait", "key") for _ in range(20)]
    until(lambda: cluster.redis.llen("started") == 20, "twenty tasks")
    cluster.multi("stop")
    until(lambda: not cluster.app.control.inspect(NODES, timeout=5).ping(), "the shutdown of both")
    after = cluster.send("plain_add", 1, 2)
    assert all(alive(pid) for pid in pids.values())
    cluster.redis.set("key", "go")
    assert [result.get(timeout=PATIENCE_S) for result in results] == ["waited"] * 20
    until(lambda: not any(alive(pid) for pid in pids.values()), "the end of both")
    until(lambda: cluster.pids() == {}, "the end of the pidfiles")
    assert cluster.redis.hlen("unacked") == 0
    assert after.state == "PENDING"  # sent too late for them
    assert cluster.redis.llen("celery") == 1


def test_show_tells_the_command_lines_and_starts_nothing(cluster):
    said = cluster.multi("show")
    lines = [line for line in said.splitlines() if "celery" in line and "worker" in line]
    assert len(lines) == 2
    for name, line in zip(NODES, lines, strict=True):
        assert "-P legit_async" in line
        assert f"-n {name}" in line
        assert f"--pidfile={cluster.folder}/{name.partition('@')[0]}.pid" in line
    assert cluster.pids() == {}


def test_killed_nodes_start_again_over_their_pidfiles(cluster):
    """What a dead node leaves behind does not keep it from starting, nor tasks from running."""
    cluster.multi("start")
    cluster.wait_until_ready()
    first = cluster.pids()
    cluster.multi("kill")
    until(lambda: not any(alive(pid) for pid in first.values()), "the end of both")
    assert cluster.pids() == first
    # Celery takes a process that has ended, and that nobody has waited for yet, for a living one.
    try:
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first.values()), "them to be gone")
    except AssertionError:
        pytest.skip("the first process of this machine waits for no orphans")
    cluster.multi("start")
    cluster.wait_until_ready(times=2)
    second = cluster.pids()
    assert not set(first.values()) & set(second.values())
    assert cluster.where_twenty_meet("again") == sorted(NODES * 10)
    cluster.multi("stopwait")
    assert not any(alive(pid) for pid in second.values())
