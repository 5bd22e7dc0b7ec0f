"""A real Flower beside a real worker of a foreign app: what it shows of the pool and its tasks, and what it can do."""

import json
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from html.parser import HTMLParser
from pathlib import Path

import pytest
import redis
from celery import Celery

from legit_embedding.testing.processes import GuardedProcess
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess, environment_without_site_settings
from tests.waiting import until

HERE = Path(__file__).parent
NODE = "pool@test"
PATIENCE_S = 30
SLOTS = 2
SOFT_LIMIT_S, HARD_LIMIT_S = 300.0, 600.0
LISTENS = re.compile(r"Visit me at http://127\.0\.0\.1:(\d+)")


class Flower:
    """`celery -A events_app flower`, in a process of its own, on a free port of the loopback interface."""

    def __init__(self, url):
        self._command = [sys.executable, "-m", "celery", "-A", "events_app", "flower", "--address=127.0.0.1"]
        # Port 0 is a free one. The patience is for inspections that are sent to one worker and end with its answer;
        # those of all workers take that long each time.
        self._command += ["--port=0", "--inspect-timeout=5000"]
        own = {name: value for name, value in environment_without_site_settings().items() if "FLOWER" not in name}
        self._env = {**own, "POOL_APP_URL": url, "POOL_APP_NOTES": url, "FLOWER_UNAUTHENTICATED_API": "true"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="legit-flower-"))
        self._process = GuardedProcess(
            self._command, folder=self._folder, log_name="flower.log", env=self._env, cwd=HERE
        )
        try:
            until(lambda: LISTENS.search(self.log) or not self._process.running, "Flower to listen")
            found = LISTENS.search(self.log)
            assert found, self.log
            self._root = f"http://127.0.0.1:{found[1]}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def log(self):
        return self._process.log

    def request(self, path, body=None, method=None, **query):
        """The status and the text of the answer."""
        target = f"{self._root}/{path}" + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(target, data=data, method=method)
        try:
            with self._opener.open(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def get(self, path, **query):
        """What the API answers, None where it knows nothing of the kind."""
        status, text = self.request(f"api/{path}", **query)
        assert status in {200, 404}, f"{status}: {text}\n{self.log}"
        return json.loads(text) if status == 200 else None

    def post(self, path, body=None, **query):
        """Has something done; what the API answers."""
        status, text = self.request(f"api/{path}", body={} if body is None else body, method="POST", **query)
        assert status == 200, f"{status}: {text}\n{self.log}"
        return json.loads(text)

    def page(self, path):
        """A page for people."""
        status, text = self.request(path)
        assert status == 200, f"{status}: {text}\n{self.log}"
        return text

    def online(self):
        """The workers whose events it hears."""
        return [name for name, alive in self.get("workers", status=1).items() if alive]

    def pool(self):
        """The pool's part of what the worker says of itself, asked anew."""
        answer = self.get("workers", refresh=1, workername=NODE)
        return (answer or {}).get(NODE, {}).get("stats", {}).get("pool", {})

    def task(self, task_id):
        """What it knows of a task by now."""
        return self.get(f"task/info/{task_id}") or {}

    def wait_for_state(self, task_id, state):
        until(lambda: self.task(task_id).get("state") == state, f"{state} of {task_id}: {self.task(task_id)}")
        return self.task(task_id)


class Client:
    """A producer, and what the app noted for it."""

    def __init__(self, url):
        self.url = url
        self.app = Celery("client", broker=url, set_as_current=False)
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def send(self, name, *args, **options):
        """The id of the task that was sent."""
        return self.app.send_task(name, args=args, **options).id

    def notes(self, key):
        return self.redis.lrange(f"note:{key}", 0, -1)

    def wait_for_note(self, key, value):
        until(lambda: value in self.notes(key), f"{value} in {key}")

    def release(self, key):
        self.redis.set(key, "go")

    def close(self):
        self.redis.close()
        self.app.close()


def worker_for(client, *args, node=NODE):
    """A worker that is not started yet."""
    return WorkerProcess(
        "events_app",
        args=["-P", "legit_async", "-n", node, "-l", "INFO", "--without-gossip", "--without-mingle", *args],
        env={
            "POOL_APP_URL": client.url,
            "POOL_APP_NOTES": client.url,
            "POOL_APP_CONFIG": json.dumps({"worker_pool_restarts": True}),
        },
        cwd=HERE,
    )


@pytest.fixture(scope="module")
def flower_server():
    with EmbeddedServer() as own:
        yield own


@pytest.fixture(scope="module")
def client(flower_server):
    own = Client(flower_server.url())
    yield own
    own.close()


@pytest.fixture(scope="module")
def worker(client):
    limits = ["--soft-time-limit", str(SOFT_LIMIT_S), "--time-limit", str(HARD_LIMIT_S)]
    with worker_for(client, "-E", "-c", str(SLOTS), *limits) as own:
        yield own


@pytest.fixture(scope="module")
def flower(flower_server, worker):
    """One that hears the worker's events; tests leave the worker's pool as they find it."""
    with Flower(flower_server.url()) as own:
        until(lambda: own.online() == [NODE], f"the worker to be online\n{own.log}")
        yield own


@pytest.fixture
def key():
    return uuid.uuid4().hex


# -- what it shows -----------------------------------------------------------------------------------------------------


def test_the_worker_is_shown_with_its_pool(flower, worker):
    shown = flower.get("workers", refresh=1, workername=NODE)[NODE]
    pool = shown["stats"]["pool"]
    assert pool["implementation"] == "legit_embedding.pool.legit_async:TaskPool"
    assert pool["max-concurrency"] == SLOTS
    assert pool["processes"] == [worker.pid]  # as in Celery's pools: who runs the tasks, by process id
    assert pool["timeouts"] == [SOFT_LIMIT_S, HARD_LIMIT_S]
    assert pool["in-flight"] == 0
    assert (shown["stats"]["pid"], shown["stats"]["prefetch_count"]) == (worker.pid, SLOTS)
    assert {"pool_app.add", "events_app.rest"} <= set(shown["registered"])
    assert [queue["name"] for queue in shown["active_queues"]] == ["celery"]


class Rows(HTMLParser):
    """The first two cells of each row of a page's tables."""

    def __init__(self, page):
        super().__init__()
        self._cells, self._inside = [], False
        self.rows = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self._cells = []
        elif tag == "td":
            self._cells.append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag == "td":
            self._inside = False
        elif tag == "tr" and len(self._cells) > 1:
            self.rows.setdefault(self._cells[0].strip(), self._cells[1].strip())

    def handle_data(self, data):
        if self._inside:
            self._cells[-1] += data


def test_the_workers_page_shows_a_table_of_the_pool(flower, worker):
    rows = Rows(flower.page(f"worker/{NODE}")).rows
    assert rows["Max concurrency"] == str(SLOTS)
    assert rows["Processes"] == rows["Worker PID"] == str(worker.pid)
    assert rows["Timeouts"] == f"{SOFT_LIMIT_S}, {HARD_LIMIT_S}"
    assert rows["In flight"] == "0"


def test_other_pages_and_metrics_know_the_worker_and_its_tasks(flower, client):
    task_id = client.send("events_app.rest", 0.05)
    flower.wait_for_state(task_id, "SUCCESS")
    assert NODE in flower.page("workers")
    assert "events_app.rest" in flower.page(f"task/{task_id}")
    metrics = flower.page("metrics")
    assert f'flower_worker_online{{worker="{NODE}"}} 1.0' in metrics
    assert f'flower_task_runtime_seconds_count{{task="events_app.rest",worker="{NODE}"}}' in metrics


@pytest.mark.parametrize("kind", ["", "plain_"])
def test_tasks_are_shown_with_their_states_and_runtimes(flower, client, kind, key):
    before_s = time.monotonic()
    rested = client.send(f"events_app.{kind}rest", 0.2)
    added, failed = client.send(f"pool_app.{kind}add", 1, 2), client.send(f"pool_app.{kind}fail", "why")
    retried, running = client.send(f"pool_app.{kind}retry"), client.send(f"pool_app.{kind}wait_late", key)
    flower.wait_for_state(running, "STARTED")
    assert 0.19 <= flower.wait_for_state(rested, "SUCCESS")["runtime"] <= time.monotonic() - before_s
    task = flower.wait_for_state(added, "SUCCESS")
    assert (task["name"], task["args"], task["result"]) == (f"pool_app.{kind}add", "(1, 2)", "3")
    assert (task["worker"], task["retries"]) == (NODE, 0)
    assert task["received"] <= task["started"] <= task["succeeded"]
    task = flower.wait_for_state(failed, "FAILURE")
    assert task["exception"] == "KeyError('why')"
    assert f"in {kind}fail" in task["traceback"]
    until(lambda: flower.task(retried).get("succeeded"), "the last attempt")
    assert flower.task(retried)["retries"] == 2
    client.release(key)
    flower.wait_for_state(running, "SUCCESS")
    listed = flower.get("tasks", taskname=f"pool_app.{kind}add", state="SUCCESS", workername=NODE)
    assert listed[added]["runtime"] > 0


# -- what it can do ----------------------------------------------------------------------------------------------------


def test_it_grows_and_shrinks_the_pool(flower, client, key):
    """What waited for a slot starts in the one that was added; the one that was taken away is gone."""
    sent = [client.send("pool_app.wait", key) for _ in range(SLOTS + 1)]
    for task_id in sent[:SLOTS]:
        flower.wait_for_state(task_id, "STARTED")
    flower.wait_for_state(sent[SLOTS], "RECEIVED")
    flower.post(f"worker/pool/grow/{NODE}", n=1)
    flower.wait_for_state(sent[SLOTS], "STARTED")
    until(lambda: flower.pool().get("max-concurrency") == SLOTS + 1, "the grown pool")
    assert flower.pool()["in-flight"] == SLOTS + 1
    flower.post(f"worker/pool/shrink/{NODE}", n=1)
    until(lambda: flower.pool().get("max-concurrency") == SLOTS, "the shrunk pool")
    client.release(key)
    for task_id in sent:
        flower.wait_for_state(task_id, "SUCCESS")


@pytest.mark.parametrize("name", ["pool_app.wait", "pool_app.plain_wait_late"])
def test_it_terminates_a_running_task(flower, client, name, key):
    task_id = client.send(name, key)
    flower.wait_for_state(task_id, "STARTED")
    client.wait_for_note("started", task_id)
    flower.post(f"task/revoke/{task_id}", terminate="true")
    assert flower.wait_for_state(task_id, "REVOKED")["revoked"]
    until(lambda: flower.pool().get("in-flight") == 0, "the slot to be free")
    if name == "pool_app.wait":
        client.wait_for_note("cleaned up", task_id)
    client.release(key)  # the thread of the plain one, which nobody can stop


def test_it_revokes_a_task_that_waits_for_a_slot(flower, client, key):
    holders = [client.send("pool_app.wait", key) for _ in range(SLOTS)]
    for task_id in holders:
        flower.wait_for_state(task_id, "STARTED")
    waiting = client.send("pool_app.wait", key)
    flower.wait_for_state(waiting, "RECEIVED")
    flower.post(f"task/revoke/{waiting}")
    client.release(key)
    flower.wait_for_state(waiting, "REVOKED")
    for task_id in holders:
        flower.wait_for_state(task_id, "SUCCESS")
    assert waiting not in client.notes("started")


@pytest.mark.parametrize("name", ["pool_app.add", "pool_app.plain_add"])
def test_it_sends_tasks_and_shows_their_results(flower, name):
    done = flower.post(f"task/apply/{name}", {"args": [1, 2], "timeout": PATIENCE_S})
    assert (done["state"], done["result"]) == ("SUCCESS", 3)
    sent = flower.post(f"task/send-task/{name}", {"args": [3, 4]})["task-id"]
    flower.wait_for_state(sent, "SUCCESS")
    assert flower.get(f"task/result/{sent}")["result"] == 7


def test_a_restart_of_the_pool_leaves_alone_what_runs(flower, client, key):
    task_id = client.send("pool_app.wait", key)
    flower.wait_for_state(task_id, "STARTED")
    flower.post(f"worker/pool/restart/{NODE}")
    client.release(key)
    flower.wait_for_state(task_id, "SUCCESS")
    flower.wait_for_state(client.send("pool_app.add", 1, 1), "SUCCESS")


def test_it_makes_a_silent_worker_tell_of_its_tasks_and_shuts_it_down(flower, client):
    node = "other@test"
    with worker_for(client, "-c", "2", "-Q", "other", node=node) as silent:
        silent.wait_for_log("Events of group {task} enabled by remote", PATIENCE_S)
        task_id = client.send("pool_app.add", 1, 2, queue="other")
        assert flower.wait_for_state(task_id, "SUCCESS")["worker"] == node
        assert node in flower.online()
        until(lambda: flower.get("workers", refresh=1, workername=node), "the other worker's answer")
        flower.post(f"worker/shutdown/{node}")
        assert silent.wait(PATIENCE_S) == 0
        until(lambda: node not in flower.online(), "the other worker to be offline")
    assert NODE in flower.online()
