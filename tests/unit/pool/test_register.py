"""`-P legit_async`, in interpreters of their own: what an import makes known, and to whom."""

import subprocess
import sys


def in_fresh_python(code):
    """What a new interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


RESOLVE = "import celery.concurrency as c; print(c.get_implementation('legit_async').__module__)"


def test_the_name_is_known_to_workers_started_by_code():
    assert in_fresh_python(f"import legit_embedding.pool; {RESOLVE}") == "legit_embedding.pool.legit_async"


def test_the_option_offers_it_where_the_command_was_loaded_first():
    """As with `celery -A app worker`: the choices are made before the app is loaded."""
    code = (
        "import celery.bin.worker as command\n"
        "before = 'legit_async' in command.WORKERS_POOL.choices\n"
        "import legit_embedding.pool\n"
        "print(before, 'legit_async' in command.WORKERS_POOL.choices)"
    )
    assert in_fresh_python(code) == "False True"


def test_the_option_offers_it_where_the_command_is_loaded_afterwards():
    code = "import legit_embedding.pool, celery.bin.worker as c; print('legit_async' in c.WORKERS_POOL.choices)"
    assert in_fresh_python(code) == "True"


def test_registering_twice_changes_nothing():
    code = (
        "import celery.bin.worker as command\n"
        "from legit_embedding.pool import register_pool\n"
        "register_pool(); register_pool()\n"
        "print(command.WORKERS_POOL.choices.count('legit_async'))"
    )
    assert in_fresh_python(code) == "1"


def test_the_command_line_takes_it(tmp_path):
    """Up to the parsing of `-P`: an option that comes after it, and is wrong, is what is complained of."""
    (tmp_path / "third_party.py").write_text(
        "from celery import Celery\nimport legit_embedding.pool\napp = Celery(broker='memory://')\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "third_party", "worker", "-P", "legit_async", "-c", "many"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 2
    assert "'many'" in done.stderr
    assert "legit_async" not in done.stderr


def test_it_brings_no_model_library_and_no_app():
    code = (
        "import sys, legit_embedding.pool, legit_embedding.pool.legit_async, legit_embedding.pool.task\n"
        "print(sorted({'torch', 'open_clip', 'transformers', 'legit_embedding.application'} & set(sys.modules)))"
    )
    assert in_fresh_python(code) == "[]"


def test_the_pool_needs_nothing_but_celery_and_greenlet():
    """So that it can be used alone, beside a few megabytes and not six gigabytes."""
    code = (
        "import sys, legit_embedding.pool.legit_async, legit_embedding.pool.task\n"
        "print([name for name in ('redis', 'torch', 'numpy', 'pydantic', 'aiohttp') if name in sys.modules])"
    )
    assert in_fresh_python(code) == "[]"
