"""One suite of behaviours, run on any of Celery's pools and brokers, and the table of what came out.

    pytest tests/conformance                                                 this pool, by its own transports
    pytest tests/conformance --pools legit_async,threads,prefork --brokers valkey --table docs/conformance.md

What another pool does not do is a finding about that pool, and is written down, not a failure of the run.
"""

import functools
import json
import os
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from celery import Celery, version_info

from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess
from tests import waiting
from tests.conformance.brokers import BROKERS, RabbitBroker
from tests.conformance.table import Outcome, write_table
from tests.waiting import close_client

HERE = Path(__file__).parent
OURS = "legit_async"
CONCURRENCY = {OURS: 64, "threads": 64, "prefork": 4}
"""Of the worker that most behaviours share."""

PATIENCE_S = float(os.environ.get("CONFORMANCE_PATIENCE_S", "30"))
"""How long a behaviour is waited for. What another pool does not do takes all of it."""


def pytest_addoption(parser):
    options = parser.getgroup("conformance")
    options.addoption("--pools", default=OURS, help="pools to run the conformance suite on")
    options.addoption("--brokers", default="pipelined,read_ahead", help="brokers to run it on")
    options.addoption("--table", type=Path, help="write what came out to this Markdown file")


def pytest_configure(config):
    config.stash[OUTCOMES] = []


OUTCOMES = pytest.StashKey()


def pytest_generate_tests(metafunc):
    if "site" not in metafunc.fixturenames:
        return
    pools = metafunc.config.getoption("--pools").split(",")
    brokers = metafunc.config.getoption("--brokers").split(",")
    if metafunc.definition.get_closest_marker("one_broker"):
        brokers = brokers[:1]
    # What the others do is for comparison: the first broker will do.
    combinations = [(pool, broker) for pool in pools for broker in (brokers if pool == OURS else brokers[:1])]
    metafunc.parametrize("site", combinations, ids=map("-".join, combinations), indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if "site" not in getattr(item, "callspec", _Nothing).params:
        return report
    pool, broker = item.callspec.params["site"]
    if report.failed and pool != OURS and report.when == "call":
        # A finding about Celery's own pool; what fails around the behaviour is a fault of ours.
        report.outcome, report.wasxfail = "skipped", f"not so on {pool}"
        said = "failed"
    elif report.skipped:
        said = "n/a"
    else:
        said = report.outcome
    if report.when == "call" or said != "passed":
        reason = report.longrepr[2].removeprefix("Skipped: ") if said == "n/a" else ""
        item.config.stash[OUTCOMES].append(Outcome.of(item, pool=pool, broker=broker, said=said, reason=reason))
    return report


class _Nothing:
    params = ()


def pytest_sessionfinish(session):
    path = session.config.getoption("--table")
    if path is not None:
        write_table(path, session.config.stash[OUTCOMES])


# -- the site: a broker, a place for notes, and workers ----------------------------------------------------------------


class Site:
    """Everything a behaviour needs: a producer, a queue of its own, workers, and what the tasks noted."""

    def __init__(self, *, pool, broker, notes_url, queue):
        self.pool, self.broker, self.queue = pool, broker, queue
        self._notes_url = notes_url
        self.redis = redis.Redis.from_url(notes_url, decode_responses=True)
        self.app = Celery("client", broker=broker.url, backend=notes_url, set_as_current=False)
        self.app.conf.task_default_queue = queue
        self.node = f"{queue}@test"

    def worker(self, *args, concurrency=4, config=None, pool=None, node=None, env=None):
        """A worker of this site's queue that is not started yet: use it with `with`."""
        return WorkerProcess(
            "conformance_app",
            args=[
                *("-P", pool or self.pool, "-c", str(concurrency), "-n", node or self.node, "-l", "INFO"),
                *("--without-gossip", "--without-mingle", *args),
            ],
            env={
                "CONFORMANCE_BROKER": self.broker.url,
                "CONFORMANCE_TRANSPORT": self.broker.transport,
                "CONFORMANCE_QUEUE": self.queue,
                "CONFORMANCE_NOTES": self._notes_url,
                "CONFORMANCE_CONFIG": json.dumps(config or {}),
                **(env or {}),
            },
            cwd=HERE,
        )

    def signature(self, name, *args, kind="async", **kwargs):
        """`outcomes.add` is the task of that name, or with kind "plain" the one beside it, `outcomes.plain_add`."""
        subject, _, task = name.rpartition(".")
        prefix = "plain_" if kind == "plain" else ""
        return self.app.signature(f"conformance_app.{subject}.{prefix}{task}", args=args, kwargs=kwargs)

    def send(self, name, *args, kind="async", **options):
        """Sends the task of that name; `options` are those of `apply_async`."""
        return self.signature(name, *args, kind=kind).apply_async(**options)

    def notes(self, key):
        """What the tasks noted under this key, in order."""
        return self.redis.lrange(f"note:{key}", 0, -1)

    def wait_until_active(self, *results):
        """Returns once the worker knows that these run: on other pools a body begins before its worker hears of it."""
        ids = {result.id for result in results}
        until(lambda: ids <= {request["id"] for request in self.ask("active") or ()}, "the worker to know what runs")

    def wait_for_notes(self, key, count):
        until(lambda: len(self.notes(key)) >= count, f"{count} notes on {key}")
        return self.notes(key)

    def release(self, key):
        """Lets the tasks go on that wait for this key."""
        self.redis.set(f"go:{key}", 1)

    def ask(self, question, *arguments, node=None):
        """What the worker answers to `celery inspect`."""
        node = node or self.node
        answers = getattr(self.app.control.inspect([node], timeout=PATIENCE_S), question)(*arguments)
        return (answers or {}).get(node)

    def command(self, name, node=None, **arguments):
        """What the worker answers to `celery control`."""
        node = node or self.node
        answers = self.app.control.broadcast(
            name, arguments=arguments, destination=[node], reply=True, timeout=PATIENCE_S, limit=1
        )
        return answers[0][node]

    @property
    def counts(self):
        """How many messages wait in the queue, and how many of it a worker holds."""
        return self.broker.counts(self.queue)

    @property
    def ready(self):
        """How many messages wait in the queue."""
        return self.counts[0]

    @property
    def unacked(self):
        """How many messages of the queue a worker holds."""
        return self.counts[1]

    def purge(self):
        """Drops what waits in the queue, and what was noted."""
        with self.app.connection_for_write() as connection:
            connection.default_channel.queue_purge(self.queue)
        for name in self.redis.scan_iter(f"note:{self.queue[-32:]}*"):
            self.redis.delete(name)

    def settled(self):
        """Returns once the broker has nothing left of this queue."""
        until(lambda: self.counts == (0, 0), "the broker to have nothing left")

    def close(self):
        close_client(self.app)
        self.redis.close()


until = functools.partial(waiting.until, timeout_s=PATIENCE_S)


@pytest.fixture(scope="session")
def notes_server():
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def brokers():
    """Starts each broker when it is first wanted."""
    running = {}
    with ExitStack() as stack:

        def get(name):
            if name not in running:
                if issubclass(BROKERS[name], RabbitBroker) and (reason := RabbitBroker.missing()):
                    pytest.skip(reason)
                broker = BROKERS[name]()
                stack.callback(broker.stop)
                broker.start()
                running[name] = broker
            return running[name]

        yield get


@pytest.fixture(scope="session")
def _shared(request, brokers, notes_server):
    """The worker that most behaviours share, one for each pool and broker, started when it is first wanted."""
    running = {}
    with ExitStack() as stack:

        def get(pool, broker_name):
            if (pool, broker_name) not in running:
                queue = f"shared-{pool}-{broker_name}"
                found = Site(pool=pool, broker=brokers(broker_name), notes_url=notes_server.url(), queue=queue)
                stack.callback(found.close)
                worker = found.worker(concurrency=CONCURRENCY[pool])
                found.shared_worker = stack.enter_context(worker)
                running[pool, broker_name] = found
            return running[pool, broker_name]

        yield get


@pytest.fixture(scope="session")
def site():
    """Parametrised by `pytest_generate_tests`; `shared` and `own` are what behaviours take."""


@pytest.fixture
def combination(request, site):
    pool, broker = request.node.callspec.params["site"]
    for marker in request.node.iter_markers("not_applicable"):
        if marker.kwargs["pool"] == pool:
            pytest.skip(marker.kwargs["reason"])
    return pool, broker


@pytest.fixture
def shared(combination, _shared):
    """A site with a worker that runs already: leave it as you find it."""
    return _shared(*combination)


@pytest.fixture
def own(combination, brokers, notes_server, key):
    """A site with a queue of its own, where the behaviour starts its workers itself."""
    pool, broker_name = combination
    found = Site(pool=pool, broker=brokers(broker_name), notes_url=notes_server.url(), queue=f"own-{key}")
    yield found
    found.close()


@pytest.fixture
def own_broker(combination, notes_server, key):
    """As `own`, with a broker of its own, to be killed and cut off."""
    pool, broker_name = combination
    if issubclass(BROKERS[broker_name], RabbitBroker) and (reason := RabbitBroker.missing()):
        pytest.skip(reason)
    if issubclass(BROKERS[broker_name], RabbitBroker) and os.environ.get("LEGIT_TEST_AMQP_URL"):
        pytest.skip("a broker named by URL is not ours to restart")
    broker = BROKERS[broker_name]()
    try:
        broker.start()
        found = Site(pool=pool, broker=broker, notes_url=notes_server.url(), queue=f"own-{key}")
        yield found
        found.close()
    finally:
        broker.stop()


@pytest.fixture
def key(notes_server):
    """A name that no other test uses; at its end it is released, and with it what a failed test leaves waiting."""
    name = uuid.uuid4().hex
    yield name
    with redis.Redis.from_url(notes_server.url()) as client:
        client.set(f"go:{name}", 1)


def since(version, what):
    """A behaviour that Celery itself has only from this version on."""
    name = ".".join(map(str, version))
    return pytest.mark.skipif(version_info[:2] < version, reason=f"Celery has this from {name} on: {what}")


stops_tasks = pytest.mark.not_applicable(pool="threads", reason="Celery's threads pool cannot stop a task")
"""A behaviour for which a running task must be stopped."""

kills_children = pytest.mark.not_applicable(pool="prefork", reason="the child process is killed")
"""A behaviour of what a plain task leaves behind that has been stopped."""

both_kinds = pytest.mark.parametrize("kind", ["async", "plain"])
"""A behaviour of `async def` and of plain tasks."""
