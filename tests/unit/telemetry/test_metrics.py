"""Figures: the same ones for Prometheus and for the hash."""

from prometheus_client import generate_latest

from legit_embedding.telemetry.metrics import Metrics


def exposed(metrics):
    """Metric line to value, as a scraper reads them."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_items_are_counted_by_model_and_outcome():
    metrics = Metrics(identity="w")
    metrics.item("clip", "ok", 3)
    metrics.item("clip", "undecodable")
    found = exposed(metrics)
    assert found['legit_items_total{model="clip",outcome="ok"}'] == 3
    assert found['legit_items_total{model="clip",outcome="undecodable"}'] == 1
    assert (metrics.snapshot()["items_ok"], metrics.snapshot()["items_error"]) == (3, 1)


def test_a_batch_counts_its_size_its_fill_and_the_devices_time():
    metrics = Metrics(identity="w")
    metrics.batch(model="clip", device="cpu", items=8, capacity=16, seconds=0.5)
    metrics.batch(model="clip", device="cpu", items=16, capacity=16, seconds=0.25)
    found = exposed(metrics)
    assert found['legit_batch_size_sum{model="clip"}'] == 24
    assert found['legit_batch_fill_bucket{le="0.5",model="clip"}'] == 1
    assert found['legit_device_busy_seconds_total{device="cpu"}'] == 0.75
    assert metrics.busy_seconds() == {"cpu": 0.75}
    assert metrics.snapshot()["batch_size_mean"] == 12
    assert metrics.snapshot()["batch_size_mean:clip"] == 12


def test_before_the_first_batch_the_mean_is_zero():
    assert Metrics(identity="w").snapshot()["batch_size_mean"] == 0


def test_gauges_show_the_present():
    metrics = Metrics(identity="w")
    now = {"entries": 5, "nbytes": 700, "used": 20, "tasks": 8}
    metrics.watch_backlog(entries=lambda: now["entries"], nbytes=lambda: now["nbytes"])
    metrics.watch_budget(lambda: now["used"])
    metrics.budget_total(100)
    metrics.watch_tasks(lambda: now["tasks"])
    now |= {"entries": 2, "nbytes": 300, "used": 10, "tasks": 4}
    metrics.models_loaded(2)
    snapshot = metrics.snapshot()
    assert snapshot["publish_backlog_entries"] == 2
    assert snapshot["publish_backlog_bytes"] == 300
    assert snapshot["budget_used_bytes"] == 10
    assert snapshot["tasks_in_flight"] == 4
    assert snapshot["models_loaded"] == 2
    shown = exposed(metrics)
    assert shown["legit_budget_total_bytes"] == 100
    assert shown["legit_budget_used_bytes"] == 10
    assert shown["legit_tasks_in_flight"] == 4
    assert (shown["legit_publish_backlog_entries"], shown["legit_publish_backlog_bytes"]) == (2, 300)


def test_stages_loads_retries_and_alarms_are_told_apart():
    metrics = Metrics(identity="w")
    metrics.stage("fetch", 0.02)
    metrics.model_load("clip", "ok", 3.0)
    metrics.model_load("clip", "model_unavailable", 1.0)
    metrics.retry("fetch")
    metrics.alarm("duplicate_identity")
    found = exposed(metrics)
    assert found['legit_stage_seconds_count{stage="fetch"}'] == 1
    assert found['legit_model_loads_total{model="clip",outcome="model_unavailable"}'] == 1
    assert found['legit_retries_total{kind="fetch"}'] == 1
    assert found['legit_alarms_total{kind="duplicate_identity"}'] == 1
    assert {name: metrics.snapshot()[name] for name in ("model_loads", "retries", "alarms")} == {
        "model_loads": 2,
        "retries": 1,
        "alarms": 1,
    }


def test_the_registry_names_the_worker():
    assert exposed(Metrics(identity="embed@rack-7"))['legit_worker_info{identity="embed@rack-7"}'] == 1


def test_two_registries_do_not_share_figures():
    first, second = Metrics(identity="a"), Metrics(identity="b")
    first.item("clip", "ok")
    assert second.snapshot()["items_ok"] == 0
