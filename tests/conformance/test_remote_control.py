"""Remote control"""

import importlib.util
import re
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from tests.conformance.conftest import PATIENCE_S, both_kinds, until


def test_a_worker_answers_a_ping(shared):
    assert shared.ask("ping") == {"ok": "pong"}


@both_kinds
def test_active_tells_what_runs_and_query_task_finds_it(shared, key, kind):
    result = shared.send("life_cycle.wait", key, kind=kind)
    shared.wait_for_notes(f"{key}:started", 1)
    (request,) = [request for request in shared.ask("active") if request["id"] == result.id]
    assert request["args"] == [key]
    assert request["worker_pid"] in {shared.shared_worker.pid, *shared.ask("stats")["pool"].get("processes", ())}
    assert request["time_start"] is not None
    assert shared.ask("query_task", result.id)[result.id][0] == "active"
    shared.release(key)
    assert result.get(timeout=PATIENCE_S) == "waited"
    until(lambda: result.id not in {request["id"] for request in shared.ask("active")}, "the end")


def test_reserved_tells_what_waits_for_a_slot(own, key):
    with own.worker(concurrency=1, config={"worker_prefetch_multiplier": 4}):
        running, waiting = (own.send("life_cycle.wait", key) for _ in range(2))
        own.wait_for_notes(f"{key}:started", 1)
        until(lambda: {request["id"] for request in own.ask("reserved")} == {waiting.id}, "the second task")
        assert own.ask("query_task", waiting.id)[waiting.id][0] == "reserved"
        own.release(key)
        assert [result.get(timeout=PATIENCE_S) for result in (running, waiting)] == ["waited"] * 2


def test_scheduled_tells_what_waits_for_its_time(own):
    with own.worker():
        result = own.send("life_cycle.process_id", eta=datetime.now(UTC) + timedelta(hours=1))
        until(lambda: [entry["request"]["id"] for entry in own.ask("scheduled")] == [result.id], "the schedule")


def test_revoked_tells_what_was_revoked(shared, key):
    shared.app.control.revoke(key, destination=[shared.node])
    until(lambda: key in shared.ask("revoked"), "the revoke")


def test_registered_tells_the_tasks_and_what_is_asked_of_them(shared):
    assert "conformance_app.outcomes.add" in shared.ask("registered")
    assert "conformance_app.rate_and_eta.tell_rarely [rate_limit=5/s]" in shared.ask("registered", "rate_limit")
    assert "conformance_app.life_cycle.wait [acks_late=True]" in shared.ask("registered", "acks_late")


def test_stats_tells_of_pool_broker_and_process(shared):
    stats = shared.ask("stats")
    assert stats["pid"] == shared.shared_worker.pid
    assert stats["prefetch_count"] >= 1
    assert stats["broker"]["transport"] in {"redis", "amqp"}
    assert stats["rusage"]["maxrss"] > 0
    assert stats["pool"]["max-concurrency"] >= 1
    assert stats["pool"]["implementation"].endswith("TaskPool")


def test_stats_counts_tasks_by_name(shared):
    before = shared.ask("stats")["total"].get("conformance_app.outcomes.add", 0)
    assert shared.send("outcomes.add", 1, 2).get(timeout=PATIENCE_S) == 3
    assert shared.ask("stats")["total"]["conformance_app.outcomes.add"] == before + 1


def test_a_report_names_the_versions_and_settings(shared):
    report = shared.ask("report")["ok"]
    assert f"celery:{version('celery')}" in report
    assert f"kombu:{version('kombu')}" in report
    assert f"task_default_queue: '{shared.queue}'" in report


def test_conf_and_clock_and_active_queues_are_told(shared):
    assert shared.ask("conf")["task_default_queue"] == shared.queue
    assert shared.ask("clock")["clock"] > 0
    assert [queue["name"] for queue in shared.ask("active_queues")] == [shared.queue]


def test_memdump_and_memsample_are_answered(shared):
    """What they say needs psutil; that they are answered does not."""
    inspect = shared.app.control.inspect([shared.node], timeout=PATIENCE_S)
    samples = [inspect.memsample()[shared.node] for _ in range(2)]
    dump = inspect.memdump()[shared.node]
    if importlib.util.find_spec("psutil") is not None:
        assert all(re.fullmatch(r"[\d.]+[MG]B", sample) for sample in samples)
        assert samples[-1] in dump


def test_consumers_are_added_and_cancelled(own, key):
    with own.worker():
        assert "ok" in own.command(
            "add_consumer", queue=f"more-{key}", exchange=f"more-{key}", routing_key=f"more-{key}"
        )
        assert own.send("outcomes.add", 1, 2, queue=f"more-{key}").get(timeout=PATIENCE_S) == 3
        assert "ok" in own.command("cancel_consumer", queue=f"more-{key}")
        # Celery answers first, and cancels in the next turn of its loop.
        until(lambda: [queue["name"] for queue in own.ask("active_queues")] == [own.queue], "the other queue's end")
