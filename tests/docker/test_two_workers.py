"""Two workers in containers of their own, on the queues of one broker: a Valkey or a RabbitMQ."""

import pytest
from pytest_celery import CELERY_RABBITMQ_BROKER, CELERY_REDIS_BROKER, CeleryWorkerCluster

from tests.docker.nodes import IMAGE_TASK

# Few slots, so that neither can take all there is. On Valkey, what a dead worker held comes back after the time-out.
SHARING = {"LEGIT_CONCURRENCY": "4"}
SOON_BACK = {"LEGIT_CONCURRENCY": "4", "LEGIT_VISIBILITY_TIMEOUT_S": "20"}

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize(
        "celery_broker", [CELERY_REDIS_BROKER, CELERY_RABBITMQ_BROKER], ids=["valkey", "rabbitmq"], indirect=True
    ),
]


@pytest.fixture
def celery_worker_cluster(celery_worker, second_worker):
    cluster = CeleryWorkerCluster(celery_worker, second_worker)
    yield cluster
    cluster.teardown()


def names(setup):
    return {worker.hostname() for worker in setup.worker_cluster}


@pytest.mark.parametrize("worker_settings", [SHARING], ids=["four-slots"])
def test_they_share_a_queue_and_each_task_is_done_once(celery_setup):
    assert len(names(celery_setup)) == 2
    assert celery_setup.answering() == names(celery_setup)
    sent = celery_setup.send_pictures(40)
    celery_setup.entries_of(sent)
    celery_setup.wait_until_drained(IMAGE_TASK[1])
    found = celery_setup.all_entries()
    assert sorted(entry.task_id for entry in found) == sorted(sent)
    assert {entry.attempt for entry in found} == {1}
    assert {entry.worker for entry in found} == names(celery_setup)


@pytest.mark.parametrize("worker_settings", [SOON_BACK], ids=["soon-back"])
def test_what_a_killed_worker_held_the_other_does(celery_setup):
    killed, other = celery_setup.worker_cluster
    sent = celery_setup.send_pictures(40)
    celery_setup.entries(until=lambda found: {entry.worker for entry in found} == names(celery_setup))
    killed.kill()
    assert killed.wait_for_exit() == 137
    before = celery_setup.all_entries()
    assert {entry.task_id for entry in before} < sent

    found = celery_setup.entries_of(sent)
    celery_setup.wait_until_drained(IMAGE_TASK[1])
    assert {entry.task_id for entry in found} == sent
    assert {entry.status for entry in found} == {"ok"}
    assert {entry.worker for entry in found[len(before) :]} == {other.hostname()}
    assert any(entry.attempt == 2 for entry in found)
