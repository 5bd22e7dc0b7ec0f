"""Models by remote control: an operator loads and unloads them in real workers that go on working meanwhile."""

import contextlib
import json
import subprocess
import sys
import time

import pytest

from legit_embedding.testing.checkpoints import minilm_folder
from legit_embedding.testing.worker import WorkerProcess, environment_without_site_settings
from tests.acceptance.site import TEXTS

FIRST, SECOND = "embed@first", "embed@second"
PATIENCE_S = 30.0
WEIGHTS_PATIENCE_S = 120.0
"""Real weights take seconds, and minutes beside much other work."""

PLUGIN = """
import os
import time
from pathlib import Path

from legit_embedding.errors import ModelUnavailableError
from legit_embedding.testing.model import FakeAdapter, FakeModel

FOLDER = Path(os.environ["STEERED_FOLDER"])


def pass_by(name):
    for _ in range(3000):
        if not (FOLDER / name).exists():
            return
        time.sleep(0.01)
    raise TimeoutError(name)


class SteeredModel(FakeModel):
    def forward(self, batch):
        pass_by("hold-forward")
        return super().forward(batch)


class SteeredAdapter(FakeAdapter):
    def __init__(self):
        super().__init__()
        self.make = SteeredModel

    def load(self, spec, limits):
        pass_by("hold-" + spec.key)
        broken = FOLDER / ("broken-" + spec.key)
        if broken.exists():
            raise ModelUnavailableError(broken.read_text())
        return super().load(spec, limits)
"""

MODELS = f"""
[models.slow]
adapter = "steered"

[models.quick]
adapter = "steered"

[models.fragile]
adapter = "steered"

[models.minilm]
adapter = "transformers"
weights = "{minilm_folder()}"
"""


class Steering:
    """Files by which a test holds what the plugin's models do: loads by the model's key, and `forward`."""

    def __init__(self, folder):
        self._folder = folder

    @contextlib.contextmanager
    def hold(self, stage):
        path = self._folder / f"hold-{stage}"
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    @contextlib.contextmanager
    def broken(self, key, message):
        path = self._folder / f"broken-{key}"
        path.write_text(message)
        try:
            yield
        finally:
            path.unlink()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("steering")


@pytest.fixture
def steering(folder):
    return Steering(folder)


@pytest.fixture(scope="module")
def environment(server, folder, tmp_path_factory):
    """Real weights beside a plugin whose models do what the steering says."""
    packages = tmp_path_factory.mktemp("packages")
    about = packages / "steered-1.0.dist-info"
    about.mkdir()
    (packages / "steered.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: steered\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[legit_embedding.models]\nsteered = steered:SteeredAdapter\n")
    models = packages / "models.toml"
    models.write_text(MODELS)
    return {
        "LEGIT_BROKER_URL": server.url(),
        "LEGIT_MODELS": str(models),
        "PYTHONPATH": str(packages),
        "STEERED_FOLDER": str(folder),
    }


def start_worker(environment, identity):
    return WorkerProcess(
        "legit_embedding", args=["-P", "legit_async", "-l", "INFO"], env={**environment, "LEGIT_WORKER_ID": identity}
    )


@pytest.fixture(scope="module")
def worker(environment):
    with start_worker(environment, FIRST) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def operator(site, worker):
    return Operator(site.app, worker)


class Operator:
    """Sends commands to one worker with Celery's own client, and waits for what they bring about."""

    def __init__(self, app, worker, identity=FIRST):
        self._control = app.control
        self._worker = worker
        self._identity = identity

    def command(self, name, *models):
        """The worker's reply."""
        arguments = {"name": models[0]} if models else {}
        (reply,) = self._control.broadcast(
            name, arguments, destination=[self._identity], reply=True, limit=1, timeout=PATIENCE_S
        )
        return reply[self._identity]

    def model(self, key):
        """What `inspect models` says of a model."""
        return next(model for model in self.command("models")["models"] if model["key"] == key)

    def until(self, key, *, timeout_s=PATIENCE_S, **wanted):
        """Waits until the model is so; what `inspect models` says of it then."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            model = self.model(key)
            if wanted.items() <= model.items():
                return model
            self._worker.wait(0.05)
        raise AssertionError(f"{model} is not {wanted} after {timeout_s:g} s")


def celery(*command, server):
    """What Celery's command line prints of the first worker's reply, as lines without their indent."""
    # With one destination named, it waits no longer than it must.
    patiently = ["--timeout", str(PATIENCE_S), "--destination", FIRST]
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "legit_embedding", *command, *patiently],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**environment_without_site_settings(), "LEGIT_BROKER_URL": server.url(), "COLUMNS": "200"},
    )
    assert done.stderr == ""
    return [line.strip() for line in done.stdout.splitlines()]


# -- load --------------------------------------------------------------------------------------------------------------


def test_load_answers_at_once_and_the_worker_goes_on_while_the_model_is_loaded(operator, site, worker, steering):
    assert operator.command("load", "quick")["ok"].startswith("the model 'quick' is being loaded; ")
    operator.until("quick", state="ready")
    with steering.hold("slow"):
        assert operator.command("load", "slow")["ok"].startswith("the model 'slow' is being loaded; ")
        operator.until("slow", state="loading")
        assert operator.command("load", "slow") == {"ok": "the model 'slow' is being loaded already"}
        assert operator.command("unload", "slow") == {
            "error": "the model 'slow' is being loaded: unload it when it is ready"
        }
        assert operator.command("ping") == {"ok": "pong"}
        (entry,) = site.embed(TEXTS, {"texts": ["meanwhile"], "model": "quick"})
        assert (entry.status, entry.model) == ("ok", "quick")
        assert operator.model("slow")["state"] == "loading"
    operator.until("slow", state="ready", loads=1)
    assert "model slow loaded in " in worker.log
    assert operator.command("load", "slow")["ok"].startswith("the model 'slow' is loaded already: ")


def test_a_load_that_fails_is_seen_in_models_and_in_the_log_and_can_be_asked_for_again(operator, worker, steering):
    with steering.broken("fragile", "no weights at /mnt/models"):
        operator.command("load", "fragile")
        failed = operator.until("fragile", state="failed")
        assert (failed["error"], failed["nbytes"]) == ("no weights at /mnt/models", 0)
        assert "model fragile: no weights at /mnt/models" in worker.log
    assert operator.command("load", "fragile") == {
        "ok": "the model 'fragile' is being loaded again; its last load failed: no weights at /mnt/models"
    }
    assert operator.until("fragile", state="ready")["error"] is None


# -- unload ------------------------------------------------------------------------------------------------------------


def test_a_model_in_use_is_not_unloaded_and_afterwards_it_is_and_comes_back_with_its_next_task(
    operator, site, worker, steering
):
    operator.command("load", "quick")
    loads = operator.until("quick", state="ready")["loads"]
    with steering.hold("forward"):
        site.send(TEXTS, {"texts": ["a"], "model": "quick", "reply_to": "site:in-use"})
        operator.until("quick", in_use=1, batches=1)
        assert operator.command("unload", "quick") == {
            "error": "the model 'quick' is in use by 1 tasks and 1 batches, and stays loaded: "
            "unload it when they are done"
        }
    assert [entry.status for entry in site.entries("site:in-use", 1)] == ["ok"]
    operator.until("quick", in_use=0, batches=0)
    told = worker.log.count("model quick unloaded")
    assert operator.command("unload", "quick") == {
        "ok": "the model 'quick' is being unloaded (0.0 MB on cpu); the next task that names it loads it again"
    }
    operator.until("quick", state="unloaded", nbytes=0)
    worker.wait_for_log("model quick unloaded", PATIENCE_S, count=told + 1)
    assert operator.command("unload", "quick") == {"ok": "the model 'quick' is not loaded"}
    (entry,) = site.embed(TEXTS, {"texts": ["b"], "model": "quick"})
    assert entry.status == "ok"
    assert operator.model("quick")["loads"] == loads + 1


# -- what is printed ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_the_command_line_prints_what_became_of_real_weights(operator, server):
    began = celery("control", "load", "minilm", server=server)
    assert began == [
        f"->  {FIRST}: OK",
        "the model 'minilm' is being loaded; `inspect models` shows when it is ready, or why it is not",
    ]
    loaded = operator.until("minilm", timeout_s=WEIGHTS_PATIENCE_S, state="ready")
    assert (loaded["device"], loaded["in_use"], loaded["error"]) == ("cpu", 0, None)
    assert loaded["nbytes"] > 1_000_000
    assert 0 <= loaded["last_used_s"] < PATIENCE_S
    size = f"{loaded['nbytes'] / 1e6:,.1f} MB on cpu"
    head, *body, _, count = celery("inspect", "models", server=server)
    assert (head, count) == (f"->  {FIRST}: OK", "1 node online.")
    shown = json.loads("".join(body))
    assert [model["key"] for model in shown["models"]] == ["slow", "quick", "fragile", "minilm"]
    assert shown["models"][3].keys() == loaded.keys()
    assert celery("control", "unload", "minilm", server=server) == [
        f"->  {FIRST}: OK",
        f"the model 'minilm' is being unloaded ({size}); the next task that names it loads it again",
    ]
    assert operator.until("minilm", state="unloaded")["nbytes"] == 0


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("arguments", [("load", "gpt"), ("unload", "gpt"), ("load",), ("unload",)])
def test_an_unknown_model_or_none_is_an_error_that_lists_those_there_are(server, arguments):
    named = arguments[1] if len(arguments) > 1 else ""
    assert celery("control", *arguments, server=server) == [
        f"->  {FIRST}: ERROR",
        f"the model {named!r} is not declared in models.toml; declared are: fragile, minilm, quick, slow",
    ]


def test_the_command_line_lists_the_commands_with_their_arguments(server):
    lines = celery("control", "--list", server=server)
    assert any(line.startswith("load NAME") for line in lines)
    assert any(line.startswith("unload NAME") for line in lines)


# -- several workers ---------------------------------------------------------------------------------------------------


def test_each_worker_answers_for_itself_and_one_can_be_meant_alone(operator, site, environment):
    with start_worker(environment, SECOND) as other:
        second = Operator(site.app, other, SECOND)
        operator.command("load", "quick")
        operator.until("quick", state="ready")
        assert second.model("quick")["state"] == "unloaded"
        replies = site.app.control.broadcast("load", {"name": "quick"}, reply=True, limit=2, timeout=PATIENCE_S)
        told = {identity: reply["ok"] for one in replies for identity, reply in one.items()}
        assert told[FIRST].startswith("the model 'quick' is loaded already: ")
        assert told[SECOND].startswith("the model 'quick' is being loaded; ")
        second.until("quick", state="ready")
        assert "ok" in second.command("unload", "quick")
        second.until("quick", state="unloaded")
        assert operator.model("quick")["state"] == "ready"
