"""What an operator switches and renames: the routing of results, and the names on the wire."""

import subprocess
import sys

import pytest

from legit_embedding.contract import Names
from legit_embedding.testing.worker import WorkerProcess, environment_without_site_settings
from tests.acceptance.site import TEXTS, Site
from tests.waiting import until

ARGS = ("-P", "legit_async", "-l", "INFO")


def control(server, value):
    """`celery -A legit_embedding control reply_to_routing <value>`; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "legit_embedding", "control", "reply_to_routing", value],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**environment_without_site_settings(), "LEGIT_BROKER_URL": server.url()},
    )
    return done.stdout


@pytest.fixture
def environment(server, models_toml):
    return {"LEGIT_BROKER_URL": server.url(), "LEGIT_MODELS": str(models_toml), "LEGIT_PRELOAD": "minilm"}


def test_the_switch_reaches_all_workers_and_outlives_them(server, client, site, environment):
    """Off: every worker writes to the global stream, a restarted one too, whatever its own setting says."""

    streams = ("mine", "embeddings:results")

    def written():
        """The streams on which results are, of as many tasks as it takes for both workers to have done some."""
        before = {stream: client.xlen(stream) for stream in streams}
        for sent in range(40, 2000, 40):
            for _ in range(40):
                site.send(TEXTS, {"texts": ["a"], "reply_to": "mine"})
            until(lambda sent=sent: sum(map(client.xlen, streams)) == sum(before.values()) + sent, "the results")
            new = {stream: client.xrange(stream)[length:] for stream, length in before.items()}
            if {fields["worker"] for page in new.values() for _, fields in page} == {"one", "two"}:
                return {stream for stream in new if new[stream]}
        raise AssertionError("one worker did everything")

    # One task at a time each, so that both get some of them.
    env = {**environment, "LEGIT_CONCURRENCY": "1"}
    with (
        WorkerProcess("legit_embedding", args=ARGS, env={**env, "LEGIT_WORKER_ID": "one"}),
        WorkerProcess("legit_embedding", args=ARGS, env={**env, "LEGIT_WORKER_ID": "two"}) as second,
    ):
        assert written() == {"mine"}
        said = control(server, "off")
        assert said.count("reply_to_routing off") == 2
        assert written() == {"embeddings:results"}
        assert second.stop() == 0
        with WorkerProcess("legit_embedding", args=ARGS, env={**env, "LEGIT_WORKER_ID": "two"}):
            assert written() == {"embeddings:results"}
            control(server, "on")
            assert written() == {"mine"}


def test_a_site_renames_tasks_queues_and_fields_without_touching_code(server, client, environment, tmp_path):
    path = tmp_path / "contract.toml"
    path.write_text(
        "[tasks]\n"
        '"tasks.text_embedding.embed_texts" = ["acme.embed", "acme.embed_v2"]\n'
        "[queues]\n"
        'text_embedding = "acme-texts"\n'
        "[envelope]\n"
        'items = "things"\nreply_to = "answer_on"\ntext = "body"\n'
        "[result]\n"
        'embedding = "vec"\nitem_id = "thing"\n'
    )
    names = Names.load(path)
    site = Site(server.url(), names=names)
    with WorkerProcess("legit_embedding", args=ARGS, env={**environment, "LEGIT_CONTRACT": str(path)}):
        for task in ("acme.embed", "acme.embed_v2"):
            site.send(task, {"things": [{"id": "x", "body": "a cat"}], "answer_on": f"acme:{task}"}, queue="acme-texts")
            (entry,) = site.entries(f"acme:{task}", 1)
            assert (entry.status, entry.item_id, entry.embedding.shape) == ("ok", "x", (384,))
    (_, fields) = client.xrange("acme:acme.embed")[0]
    assert {"vec", "thing"} <= set(fields)
    assert not {"embedding", "item_id"} & set(fields)
