"""Settings: read once, frozen, and clear about what is wrong."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from legit_embedding.config import (
    Settings,
    StreamConfig,
    describe,
    hide_password,
    load_settings,
    unknown_variables,
    variable_name,
)
from legit_embedding.errors import ConfigurationError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No setting comes from the machine on which the tests run."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_name(field), raising=False)


def test_nothing_may_be_read_unless_a_setting_allows_it():
    settings = load_settings()
    assert (settings.allowed_roots, settings.allowed_hosts, settings.shm_root) == ((), (), None)


def test_the_environment_is_read_with_its_prefix(monkeypatch):
    monkeypatch.setenv("LEGIT_CONCURRENCY", "32")
    monkeypatch.setenv("LEGIT_BUDGET_BYTES", "2GiB")
    monkeypatch.setenv("LEGIT_ALLOWED_HOSTS", "a.example, b.example:8080 ,")
    settings = load_settings()
    assert settings.concurrency == 32
    assert settings.budget_bytes == 2 * 1024**3
    assert settings.allowed_hosts == ("a.example", "b.example:8080")


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        load_settings().concurrency = 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("LEGIT_CONCURRENCY", "many"), ("LEGIT_MAX_ITEMS", "0"), ("LEGIT_REPLY_TO_ROUTING", "maybe")],
)
def test_a_value_that_cannot_be_used_is_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable):
        load_settings()


OPTIONAL = [name for name, field in Settings.model_fields.items() if field.default is None]


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_empty_optional_variable_counts_as_unset(monkeypatch, name):
    monkeypatch.setenv(variable_name(name), "")
    assert getattr(load_settings(), name) is None


def test_an_empty_variable_that_is_not_optional_is_an_error(monkeypatch):
    monkeypatch.setenv("LEGIT_CONCURRENCY", "")
    with pytest.raises(ConfigurationError, match="LEGIT_CONCURRENCY"):
        load_settings()


def test_sentry_has_one_variable(monkeypatch):
    monkeypatch.setenv("LEGIT_SENTRY_DSN", "https://key@sentry.example/1")
    assert load_settings().sentry_dsn is None
    assert unknown_variables({"LEGIT_SENTRY_DSN": "x"}) == ["LEGIT_SENTRY_DSN is no setting; did you mean SENTRY_DSN?"]


def test_the_identity_is_service_at_host_unless_it_is_given():
    assert load_settings(service="svc").identity == f"svc@{socket.gethostname()}"
    assert load_settings(worker_id="embed-3").identity == "embed-3"


def test_a_misspelt_variable_is_told_with_its_closest_name():
    assert unknown_variables({"LEGIT_CONCURENCY": "1", "LEGIT_MODELS": "x", "OTHER": "y"}) == [
        "LEGIT_CONCURENCY is no setting; did you mean LEGIT_CONCURRENCY?"
    ]


def test_every_setting_is_described_with_its_origin_and_without_secrets(monkeypatch):
    monkeypatch.setenv("SENTRY_DSN", "https://secret@sentry.example/1")
    monkeypatch.setenv("LEGIT_RESULTS_URL", "redis://user:secret@host:6379/0")
    lines = {line.variable: line for line in describe(load_settings())}
    assert len(lines) == len(Settings.model_fields)
    assert lines["SENTRY_DSN"].value == "(set, hidden)"
    assert lines["LEGIT_RESULTS_URL"].value == "redis://user:***@host:6379/0"
    assert lines["LEGIT_RESULTS_URL"].origin == "environment"
    assert lines["LEGIT_MAX_ITEMS"].origin == "default"
    assert all(line.doc for line in lines.values())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host/0", "redis://host/0"),
        ("redis://:pw@host/0", "redis://:***@host/0"),
        ("redis://me:p@w@host/0", "redis://me:***@host/0"),
        ("redis://me:p/w?x@host/0", "redis://me:***@host/0"),
        ("amqp://me@host//", "amqp://me@host//"),
        ("redis://:pw@a/0;redis://:other@b/0", "redis://:***@a/0;redis://:***@b/0"),
        ("redis://a/0?password=pw&db=1", "redis://a/0?password=***&db=1"),
        ("rediss://a/0?db=1&ssl_password=pw", "rediss://a/0?db=1&ssl_password=***"),
        ("redis://:pw@a/0?password=p@w", "redis://:***@a/0?password=***"),
        ("redis://:p?password=w@host/0", "redis://***"),
        ("me:pw@host", "me:***@host"),
        ("", ""),
    ],
)
def test_a_password_never_shows(url, shown):
    assert hide_password(url) == shown


PASSWORDS = st.text(min_size=1).filter(lambda text: "://" not in text)


@given(password=PASSWORDS.filter(lambda text: "password=" not in text.lower()))
def test_no_password_of_a_user_shows_whatever_it_holds(password):
    assert hide_password(f"redis://me:{password}@host:6379/0") == "redis://me:***@host:6379/0"


@given(password=PASSWORDS.filter(lambda text: "&" not in text), option=st.sampled_from(["password", "ssl_password"]))
def test_no_password_in_the_query_shows_whatever_it_holds(password, option):
    shown = hide_password(f"redis://host/0?{option}={password}&db=1")
    assert shown in {f"redis://host/0?{option}=***&db=1", "redis://***"}


def test_stream_config_keeps_the_old_fields():
    assert StreamConfig() == StreamConfig("embeddings:results", None, approximate=True, encoding="base64_fp32")
