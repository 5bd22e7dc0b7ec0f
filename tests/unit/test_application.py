"""The app: lazy, nobody's current app, and refusing to start where it could not work."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from legit_embedding import application
from legit_embedding.errors import ConfigurationError


def in_fresh_python(code, cwd=None):
    """What a new interpreter prints for `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_makes_it_nobodys_current_app():
    code = (
        "import celery; mine = celery.Celery('mine')\n"
        "import legit_embedding; legit_embedding.app\n"
        "print(celery.current_app.main, celery._state.get_current_app().main)"
    )
    assert in_fresh_python(code) == "mine mine"


def test_importing_the_package_loads_no_model_library():
    code = (
        "import sys, legit_embedding\n"
        "before = 'legit_embedding.application' in sys.modules\n"
        "legit_embedding.app.loader.import_default_modules()\n"
        "print(before, sorted({'torch', 'open_clip', 'transformers'} & set(sys.modules)))"
    )
    assert in_fresh_python(code) == "False []"


def test_a_foreign_tasks_package_stops_the_start(tmp_path):
    """`celery -A` puts the working folder first on the path, and many a folder has a `tasks`."""
    (tmp_path / "tasks.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import legit_embedding\n"
        "try: legit_embedding.app\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = in_fresh_python(code)
    assert said.startswith("ConfigurationError a foreign module 'tasks' at")
    assert str(tmp_path) in said


def test_a_missing_module_is_told():
    with pytest.raises(ConfigurationError, match="install it again"):
        application.require_own("no_such_module_of_ours")


@pytest.mark.parametrize("pool", ["celery.concurrency.thread:TaskPool", "prefork"])
def test_another_pool_stops_the_start(pool):
    with pytest.raises(SystemExit, match="-P legit_async"):
        application._fit_to_pool_and_broker(sender=SimpleNamespace(app=application.app, pool_cls=pool))


def test_workers_of_other_apps_are_left_alone():
    application._fit_to_pool_and_broker(sender=SimpleNamespace(app=object(), pool_cls="prefork"))
    application._before_worker(instance=SimpleNamespace(app=object()))


def test_the_three_tasks_have_their_old_names_and_queues():
    app = application.app
    app.loader.import_default_modules()
    assert {name for name in app.tasks if name.startswith("tasks.")} == {
        "tasks.preparation.prepare_images",
        "tasks.embedding.embed_images",
        "tasks.text_embedding.embed_texts",
    }
    assert sorted(app.amqp.queues) == ["image_embedding", "image_preparation", "text_embedding"]
    assert app.amqp.router.route({}, "tasks.text_embedding.embed_texts")["queue"].name == "text_embedding"


def test_concurrency_does_not_follow_the_cpu_count():
    assert application.app.conf.worker_concurrency == 512
