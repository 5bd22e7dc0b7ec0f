"""Two thousand mixed tasks from a plain producer, through a real worker with real models, onto a real server."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import redis
from PIL import Image

from legit_embedding.contract import Names, parse_entry
from legit_embedding.publish.reader import StreamReader
from legit_embedding.testing.server import EmbeddedServer
from legit_embedding.testing.worker import WorkerProcess

TASKS = 2000
GLOBAL_STREAM = "embeddings:results"
STREAMS = ("acceptance:a", "acceptance:b", "acceptance:c", GLOBAL_STREAM)
QUEUES = ("image_preparation", "image_embedding", "text_embedding")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight noisy JPEGs of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(7)
    for number in range(8):
        pixels = random.integers(0, 255, (96 + 40 * number, 320 - 20 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def outcome(models_toml, pictures):
    """Everything is queued first, then one worker takes it: what was sent, what came, and what the worker tells."""
    with EmbeddedServer() as server:
        sent = produce(server.url(), pictures)
        env = {"LEGIT_BROKER_URL": server.url(), "LEGIT_MODELS": str(models_toml), "LEGIT_WORKER_ID": "acceptance@test"}
        env |= {"LEGIT_STATS_INTERVAL_S": "0.5"}
        with WorkerProcess("legit_embedding", args=["-P", "legit_async", "-l", "INFO"], env=env) as worker:
            arrived = collect(server.url(), sent)
            with redis.Redis.from_url(server.url(), decode_responses=True) as client:
                figures = settled_figures(client, worker)
                code = worker.stop()
                left = {key: client.exists(key) for key in ("unacked", "unacked_index", *QUEUES)}
        yield {"sent": sent, "arrived": arrived, "figures": figures, "left": left, "code": code, "log": worker.log}


def produce(url, pictures):
    """Task id to (items, stream)."""
    producer = Path(__file__).with_name("producer.py")
    command = [sys.executable, str(producer), url, str(TASKS), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=producer.parent)
    tasks = [json.loads(line) for line in done.stdout.splitlines()]
    return {task["task_id"]: (task["items"], task["stream"] or GLOBAL_STREAM) for task in tasks}


def collect(url, sent):
    """Every entry of every stream, as (stream, entry)."""
    expected = sum(items for items, _ in sent.values())
    names = Names.load(None)
    with StreamReader(url) as reader:
        found = reader.read(dict.fromkeys(STREAMS, "0"), expected=expected, timeout_s=100)
        return [(stream, parse_entry(fields, names=names)) for stream, _, fields in found]


def settled_figures(client, worker):
    """The worker's own figures, once its last task has been acknowledged."""
    worker.wait_for_log("ready", 1)
    for _ in range(200):
        figures = client.hgetall("legit:worker:acceptance@test")
        if figures and not client.exists("unacked") and float(figures.get("tasks_in_flight", 1)) == 0:
            return figures
        worker.wait(0.1)
    return client.hgetall("legit:worker:acceptance@test")


@pytest.mark.timeout(180)
def test_every_item_comes_exactly_once(outcome):
    """Every (task_id, index) of every task, and nothing else."""
    counts = Counter((entry.task_id, entry.index) for _, entry in outcome["arrived"])
    expected = {(task_id, index) for task_id, (items, _) in outcome["sent"].items() for index in range(items)}
    assert set(counts) == expected
    assert set(counts.values()) == {1}
    assert {entry.status for _, entry in outcome["arrived"]} == {"ok"}


def test_every_result_is_on_the_stream_its_task_named(outcome):
    """`reply_to` where there was one, the global stream where not."""
    assert all(outcome["sent"][entry.task_id][1] == stream for stream, entry in outcome["arrived"])
    assert {stream for stream, _ in outcome["arrived"]} == set(STREAMS)


def test_nothing_is_left_unacknowledged_or_queued(outcome):
    """After a warm shutdown the broker holds no trace of the tasks."""
    assert outcome["left"] == dict.fromkeys(outcome["left"], 0)
    assert outcome["code"] == 0


def test_each_model_was_loaded_once(outcome):
    """However many tasks asked for it at once."""
    assert outcome["log"].count("model clip loaded") == 1
    assert outcome["log"].count("model minilm loaded") == 1


def test_a_full_queue_gives_batches_of_more_than_eight(outcome):
    """Items of many tasks share a batch; the worker reports the mean itself."""
    assert float(outcome["figures"]["batch_size_mean"]) > 8


def test_vectors_are_unit_length_and_of_the_models_dimension(outcome):
    """384 for MiniLM; the image model's is its own."""
    for _, entry in outcome["arrived"]:
        assert entry.embedding.shape == (entry.dim,)
        assert abs(float(np.linalg.norm(entry.embedding)) - 1) < 1e-5
    assert {entry.dim for _, entry in outcome["arrived"] if entry.modality == "text"} == {384}
