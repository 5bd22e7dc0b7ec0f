"""One worker with the real adapters, as its producers, its operator and its tools see it."""

import base64
import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from legit_embedding.testing.worker import WorkerProcess, environment_without_site_settings
from tests.acceptance.site import IMAGES, PREPARED, TEXTS, Site, metrics

IDENTITY = "embed@acceptance"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where files and prepared images may lie."""
    return tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("shm")


@pytest.fixture(scope="module")
def worker(server, models_toml, folders):
    """Started as the README says, with everything open that a site may open."""
    env = {
        "LEGIT_BROKER_URL": server.url(),
        "LEGIT_MODELS": str(models_toml),
        "LEGIT_PRELOAD": "defaults",
        "LEGIT_WORKER_ID": IDENTITY,
        "LEGIT_METRICS_PORT": "0",
        "LEGIT_STATS_INTERVAL_S": "0.5",
        "LEGIT_ALLOWED_ROOTS": str(folders[0]),
        "LEGIT_SHM_ROOT": str(folders[1]),
        "CELERY_RESULT_BACKEND": server.url(),
    }
    with WorkerProcess("legit_embedding", args=["-P", "legit_async", "-l", "INFO"], env=env) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def image_side(models_toml):
    """Height and width of what the image model takes."""
    weights = Path(tomllib.loads(models_toml.read_text())["models"]["clip"]["weights"])
    config = json.loads((weights / "open_clip_config.json").read_text())
    return config["model_cfg"]["vision_cfg"]["image_size"]


pytestmark = pytest.mark.usefixtures("worker")


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def as_base64(data):
    return base64.b64encode(data).decode("ascii")


RED = encoded(Image.new("RGB", (64, 48), (200, 30, 30)))


def run(*command, server, timeout_s=60, **env):
    """A command line of ours or Celery's, as a user's shell runs it."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env={**environment_without_site_settings(), "LEGIT_BROKER_URL": server.url(), "COLUMNS": "200", **env},
    )


# -- the items ---------------------------------------------------------------------------------------------------------


def test_each_bad_image_gets_its_error_and_its_neighbours_their_vectors(site):
    whole = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")
    items = [
        {"id": "good-1", "data": as_base64(RED)},
        {"id": "broken-jpeg", "data": as_base64(whole[: len(whole) // 2])},
        {"id": "no-image", "data": as_base64(b"these bytes are no picture")},
        {"id": "wrong-base64", "data": "not base64 at all!"},
        {"id": "two-sources", "data": as_base64(RED), "path": "/etc/passwd"},
        {"id": "no-source"},
        {"id": "outside", "path": "/etc/passwd"},
        {"id": "closed-host", "url": "http://example.invalid/x.png"},
        {"id": "good-2", "data": "data:image/png;base64," + as_base64(RED)},
        17,
    ]
    entries = site.embed(IMAGES, {"items": items})
    assert [entry.error_type or entry.status for entry in entries] == [
        "ok",
        "undecodable",
        "undecodable",
        "invalid_item",
        "invalid_item",
        "invalid_item",
        "source_not_allowed",
        "source_not_allowed",
        "ok",
        "invalid_item",
    ]
    assert [entry.item_id for entry in entries] == [*(item["id"] for item in items[:-1]), "9"]
    np.testing.assert_allclose(entries[0].embedding, entries[8].embedding, atol=2e-3)
    assert all(entry.error for entry in entries if entry.status == "error")


def test_an_empty_text_is_an_error_beside_good_ones(site):
    entries = site.embed(TEXTS, {"texts": ["a cat", "", "   ", "a dog"], "ids": ["a", "b", "c", 4]})
    assert [entry.error_type or entry.status for entry in entries] == ["ok", "invalid_item", "invalid_item", "ok"]
    assert [entry.item_id for entry in entries] == ["a", "b", "c", "4"]


def test_an_unknown_model_fails_each_item_of_its_task(site):
    entries = site.embed(TEXTS, {"texts": ["a", "b"], "model": "gpt"})
    assert {(entry.error_type, entry.model) for entry in entries} == {("unknown_model", "gpt")}
    assert "minilm" in entries[0].error


def test_an_envelope_that_is_no_object_gives_one_entry_on_the_global_stream(site, client):
    before = client.xlen("embeddings:results")
    task = site.send(TEXTS, ["no", "object"])
    entry = site.entries("embeddings:results", before + 1)[-1]
    assert (entry.task_id, entry.index, entry.count) == (task.id, -1, 0)
    assert entry.error_type == "invalid_envelope"


def test_an_image_model_refuses_a_text(site):
    (entry,) = site.embed(TEXTS, {"texts": ["a"], "model": "clip"})
    assert entry.error_type == "invalid_item"


def test_nearest_texts_are_those_that_mean_the_same(site):
    texts = ["A cat sleeps on the sofa.", "The kitten naps on the couch.", "Interest rates were raised by the bank."]
    vectors = np.stack([entry.embedding for entry in site.embed(TEXTS, {"texts": texts})])
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.5 > cosine[0, 2]


# -- what an entry says ------------------------------------------------------------------------------------------------


def test_an_entry_carries_what_the_contract_promises(site):
    envelope = {
        "items": [{"id": "x", "text": "a cat", "metadata": {"page": 3}}],
        "source": "catalogue",
        "batch_id": "batch-7",
        "metadata": {"page": 1, "tenant": "t"},
        "something_new": True,
    }
    (entry,) = site.embed(TEXTS, envelope)
    assert (entry.source, entry.batch_id, entry.item_id, entry.attempt) == ("catalogue", "batch-7", "x", 1)
    assert entry.metadata == {"page": 3, "tenant": "t"}
    assert (entry.modality, entry.model, entry.dim, entry.encoding) == ("text", "minilm", 384, "base64_fp32")
    assert entry.worker == IDENTITY
    assert entry.fingerprint
    assert entry.dtype in {"float32", "bfloat16"}


def test_options_cut_and_keep_length_and_show_in_the_fingerprint(site):
    (whole,) = site.embed(TEXTS, {"texts": ["a cat"]})
    (cut,) = site.embed(TEXTS, {"texts": ["a cat"], "options": {"dimensions": 64}})
    assert cut.dim == 64
    assert cut.fingerprint != whole.fingerprint
    expected = whole.embedding[:64] / np.linalg.norm(whole.embedding[:64])
    np.testing.assert_allclose(cut.embedding, expected, atol=2e-3)


def test_a_reply_to_that_is_the_brokers_own_key_loses_nothing(site, client):
    before = client.xlen("embeddings:results")
    site.send(TEXTS, {"texts": ["a"], "reply_to": "unacked"})
    entry = site.entries("embeddings:results", before + 1)[-1]
    assert (entry.status, entry.rejected_reply_to) == ("ok", "unacked")
    assert client.type("unacked") in {"none", "hash"}


def test_a_celery_result_backend_gets_the_summary_of_who_asks_for_it(server):
    site = Site(server.url(), backend=server.url())
    envelope = {"texts": ["a", ""], "reply_to": "site:summary", "batch_id": "b-1"}
    summary = site.send(TEXTS, envelope, ignore_result=False).get(timeout=30)
    first, last = (entry_id for entry_id in (summary.pop("first_entry"), summary.pop("last_entry")))
    assert summary == {"batch_id": "b-1", "stream": "site:summary", "count": 2, "ok": 1, "errors": 1}
    assert first < last


# -- other sources -----------------------------------------------------------------------------------------------------


def test_a_file_under_an_allowed_root_is_read_and_a_link_out_of_it_is_not(site, folders):
    (folders[0] / "red.png").write_bytes(RED)
    (folders[0] / "out.png").symlink_to("/etc/passwd")
    items = [{"path": str(folders[0] / name)} for name in ("red.png", "out.png", "absent.png")]
    entries = site.embed(IMAGES, {"items": items})
    assert [entry.error_type or entry.status for entry in entries] == ["ok", "source_not_allowed", "source_not_found"]


def test_a_prepared_image_goes_when_its_task_has_been_acknowledged(site, folders, worker, client, image_side):
    path = folders[1] / "prepared.bin"
    path.write_bytes(np.zeros((3, image_side, image_side), np.float32).tobytes())
    shm = {"path": str(path), "dtype": "float32", "shape": [3, image_side, image_side]}
    (entry,) = site.embed(PREPARED, {"items": [{"shm": shm}]})
    assert entry.status == "ok"
    until(lambda: not path.exists(), worker)
    until(lambda: not client.exists("unacked"), worker)


def until(condition, worker, timeout_s=20):
    """Waits for something that the worker will have done."""
    for _ in range(int(timeout_s / 0.1)):
        if condition():
            return
        worker.wait(0.1)
    raise AssertionError("it did not happen in time")


# -- the operator ------------------------------------------------------------------------------------------------------


def test_one_identity_stands_everywhere(site, worker, client, server):
    (entry,) = site.embed(TEXTS, {"texts": ["who are you"]})
    assert entry.worker == IDENTITY
    assert f": INFO/{IDENTITY}] {IDENTITY} ready." in worker.log
    assert client.hget(f"legit:worker:{IDENTITY}", "identity") == IDENTITY
    assert f'legit_worker_info{{identity="{IDENTITY}"}}' in metrics(worker)
    answer = run("celery", "-A", "legit_embedding", "inspect", "ping", "--json", server=server)
    assert list(json.loads(answer.stdout)) == [IDENTITY]


def test_the_metrics_tell_items_batches_stages_and_backlog(site, worker):
    site.embed(TEXTS, {"texts": ["a", "", "b"]})
    site.embed(IMAGES, {"items": [{"data": as_base64(RED)}]})
    text = metrics(worker)
    for wanted in (
        'legit_items_total{model="minilm",outcome="ok"}',
        'legit_items_total{model="minilm",outcome="invalid_item"}',
        'legit_batch_size_count{model="clip"}',
        'legit_batch_fill_bucket{le="1.0",model="minilm"}',
        'legit_device_busy_seconds_total{device="cpu"}',
        'legit_stage_seconds_count{stage="prepare"}',
        'legit_stage_seconds_count{stage="forward"}',
        'legit_stage_seconds_count{stage="publish"}',
        "legit_publish_backlog_entries",
        'legit_model_loads_total{model="clip",outcome="ok"} 1.0',
        'legit_model_loads_total{model="minilm",outcome="ok"} 1.0',
    ):
        assert wanted in text


def test_the_figures_stand_in_a_hash_with_a_ttl(site, worker, client):
    site.embed(TEXTS, {"texts": ["count me"]})
    key = f"legit:worker:{IDENTITY}"
    until(lambda: int(client.hget(key, "items_ok") or 0) >= 1, worker)
    assert 0 < client.ttl(key) <= 10
    figures = client.hgetall(key)
    assert {"batch_size_mean", "busy_share:cpu", "publish_backlog_bytes", "reply_to_routing"} <= set(figures)


def test_smoke_sends_one_image_and_one_text_and_shows_both(server):
    done = run("legit_embedding.cli", "smoke", "--timeout", "30", server=server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(IDENTITY) == 2
    assert " clip " in done.stdout
    assert " minilm " in done.stdout


def test_smoke_fails_where_no_worker_consumes_the_queues(server, tmp_path):
    names = tmp_path / "contract.toml"
    names.write_text('[queues]\nimage_preparation = "nobody:images"\ntext_embedding = "nobody:texts"\n')
    done = run("legit_embedding.cli", "smoke", "--timeout", "1", server=server, LEGIT_CONTRACT=str(names))
    assert done.returncode == 1
    assert done.stdout.count("nothing came in 1 s") == 2
    assert "smoke failed" in done.stdout


def test_inspect_models_lists_each_model_with_its_state(server):
    answer = run("celery", "-A", "legit_embedding", "inspect", "models", "--json", server=server)
    models = {model["key"]: model for model in json.loads(answer.stdout)[IDENTITY]["models"]}
    assert {key: model["state"] for key, model in models.items()} == {"clip": "ready", "minilm": "ready"}
    assert models["minilm"]["nbytes"] > 1_000_000
    assert models["clip"]["loads"] == 1


def test_a_control_command_with_a_wrong_value_changes_nothing(server):
    answer = run("celery", "-A", "legit_embedding", "control", "reply_to_routing", "maybe", server=server)
    assert "takes on or off, not 'maybe'" in answer.stdout
