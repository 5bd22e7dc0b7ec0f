"""One worker in a container, with a Valkey or a RabbitMQ in another: what teams do to a worker, and what then holds."""

import numpy as np
import pytest
from pytest_celery import CELERY_RABBITMQ_BROKER, CELERY_REDIS_BROKER
from pytest_docker_tools.wrappers.container import wait_for_callable

from tests.docker.nodes import IMAGE_TASK, READ_TIMEOUT_S, TEXT_TASK, pictures

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize(
        "celery_broker", [CELERY_REDIS_BROKER, CELERY_RABBITMQ_BROKER], ids=["valkey", "rabbitmq"], indirect=True
    ),
]

ONE_SLOT = {"LEGIT_CONCURRENCY": "1"}
FOUR_SLOTS = {"LEGIT_CONCURRENCY": "4"}

# On Valkey, what a dead worker held comes back after so long. On RabbitMQ it does so at once.
SOON_BACK = {**FOUR_SLOTS, "LEGIT_VISIBILITY_TIMEOUT_S": "20"}

# More images than a CPU embeds while a test looks on.
LONG_TASK = pictures(400)


def with_settings(settings, name):
    return pytest.mark.parametrize("worker_settings", [settings], ids=[name])


def test_it_answers_a_ping(celery_setup):
    assert celery_setup.ready(control=True)
    assert celery_setup.answering() == {celery_setup.worker.hostname()}


def test_a_plain_producers_vectors_land_on_the_stream_it_names(celery_setup):
    """One entry an item, from this worker, with vectors that mean something; then the messages are acknowledged."""
    texts = {"cat": "a cat on a sofa", "kitten": "a kitten on a couch", "tax": "how to file a tax return"}
    text_task = celery_setup.send(TEXT_TASK, [{"id": key, "text": text} for key, text in texts.items()])
    image_task = celery_setup.send(IMAGE_TASK, [{"id": "photo", **pictures(1)[0]}])

    found = {entry.item_id: entry for entry in celery_setup.entries(until=lambda found: len(found) == 4)}
    assert {(entry.status, entry.worker) for entry in found.values()} == {("ok", celery_setup.worker.hostname())}
    assert {(entry.task_id, entry.model, entry.dim) for entry in found.values()} == {
        (text_task, "minilm", 384),
        (image_task, "clip", 512),
    }
    vectors = {key: np.asarray(entry.embedding) for key, entry in found.items()}
    assert [round(float(np.linalg.norm(vector)), 4) for vector in vectors.values()] == [1.0] * 4
    assert vectors["cat"] @ vectors["kitten"] > 0.5 > vectors["cat"] @ vectors["tax"]

    for name, task_id in ((TEXT_TASK[0], text_task), (IMAGE_TASK[0], image_task)):
        celery_setup.worker.assert_log_exists(f"{name}[{task_id}] succeeded")
    celery_setup.wait_until_drained(TEXT_TASK[1], IMAGE_TASK[1])
    assert len(celery_setup.all_entries()) == 4


@with_settings(SOON_BACK, "soon-back")
def test_a_killed_worker_does_what_it_had_after_its_restart(celery_setup):
    """What it held comes again, marked as such; what came while it was dead is done too."""
    worker = celery_setup.worker
    sent = celery_setup.send_pictures(24)
    celery_setup.first_entry()
    worker.kill()
    assert worker.wait_for_exit() == 137
    before = {entry.task_id for entry in celery_setup.all_entries()}
    assert before < sent
    sent.add(celery_setup.send(TEXT_TASK, [{"text": "sent to a dead worker"}]))

    worker.restart()
    assert celery_setup.answering() == {worker.hostname()}
    found = celery_setup.entries_of(sent)
    celery_setup.wait_until_drained(IMAGE_TASK[1], TEXT_TASK[1])
    assert {entry.task_id for entry in found} == sent
    assert {entry.status for entry in found} == {"ok"}
    again = {entry.task_id for entry in found if entry.attempt == 2}
    assert again
    assert again <= sent


@with_settings(SOON_BACK, "soon-back")
def test_it_lives_through_a_restart_of_its_broker(celery_setup):
    """The same process connects again; what was under way, queued or sent later is answered."""
    worker = celery_setup.worker
    life = worker.started_at()
    sent = celery_setup.send_pictures(24)
    celery_setup.first_entry()
    celery_setup.broker.restart()
    assert {entry.task_id for entry in celery_setup.all_entries()} < sent

    sent.add(celery_setup.send(TEXT_TASK, [{"text": "sent to the broker's second life"}]))
    # A worker that is not connected yet misses a ping for good.
    wait_for_callable(
        "Waiting for a pong", lambda: celery_setup.answering(timeout_s=2) == {worker.hostname()}, READ_TIMEOUT_S
    )
    found = celery_setup.entries_of(sent)
    celery_setup.wait_until_drained(IMAGE_TASK[1], TEXT_TASK[1])
    assert {entry.task_id for entry in found} == sent
    assert {entry.status for entry in found} == {"ok"}
    worker.assert_log_exists("Trying to re-establish the connection")
    assert worker.started_at() == life


@with_settings(ONE_SLOT, "one-slot")
def test_a_revoked_task_never_starts_and_a_terminated_one_stops(celery_setup):
    """Neither comes back, and the slot is free for the next."""
    worker, name = celery_setup.worker, IMAGE_TASK[0]
    running = celery_setup.send(IMAGE_TASK, LONG_TASK)
    assert celery_setup.first_entry().task_id == running
    waiting = celery_setup.send(IMAGE_TASK, pictures(1))
    following = celery_setup.send(IMAGE_TASK, pictures(1))

    celery_setup.revoke(waiting)
    celery_setup.revoke(running, terminate=True)
    found = celery_setup.entries_of([following])
    worker.assert_log_exists(f"Discarding revoked task: {name}[{waiting}]")
    worker.assert_log_does_not_exist(f"{name}[{running}] succeeded")
    celery_setup.wait_until_drained(IMAGE_TASK[1])

    found = [entry.task_id for entry in celery_setup.all_entries()]
    assert set(found) == {running, following}
    assert found.count(running) < len(LONG_TASK)
    assert found.count(following) == 1


@with_settings(FOUR_SLOTS, "four-slots")
def test_a_warm_shutdown_finishes_what_has_begun_and_leaves_the_rest(celery_setup):
    """Exit code 0, each task done once or still queued; the next start does what was left, and nothing twice."""
    worker = celery_setup.worker
    sent = celery_setup.send_pictures(24)
    celery_setup.first_entry()
    worker.kill("SIGTERM")
    assert worker.wait_for_exit() == 0
    worker.assert_log_exists("Warm shutdown")

    queued, held = celery_setup.broker.messages(IMAGE_TASK[1])
    answered = [entry.task_id for entry in celery_setup.all_entries()]
    assert held == 0
    assert queued > 0
    assert len(answered) == len(set(answered)) == len(sent) - queued

    worker.restart()
    celery_setup.entries_of(sent)
    celery_setup.wait_until_drained(IMAGE_TASK[1])
    assert sorted(entry.task_id for entry in celery_setup.all_entries()) == sorted(sent)
