"""`legit-embedding config`: what is in force, where it comes from, and no secret."""

import json

import pytest
from typer.testing import CliRunner

from legit_embedding.cli import cli
from legit_embedding.config import BROKER_VARIABLE, Settings, variable_name


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No setting comes from the machine on which the tests run; a line is as long as it likes."""
    for variable in (BROKER_VARIABLE, *map(variable_name, Settings.model_fields)):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "300")


def shown(*args):
    """What `legit-embedding config` prints."""
    result = CliRunner().invoke(cli, ["config", *args], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def described():
    """The same as JSON, by variable."""
    lines = map(json.loads, shown("--json").splitlines())
    return {line["variable"]: line for line in lines}


def test_every_setting_is_one_json_object_a_line():
    lines = described()
    assert lines.keys() == set(map(variable_name, Settings.model_fields))
    assert lines["LEGIT_CONCURRENCY"]["value"] == "512"
    assert lines["LEGIT_CONCURRENCY"]["unit"] == "tasks"
    assert lines["LEGIT_CONCURRENCY"]["origin"] == "default"


def test_the_broker_is_the_one_that_celery_uses(monkeypatch):
    monkeypatch.setenv("LEGIT_BROKER_URL", "redis://ours/0")
    assert (described()["LEGIT_BROKER_URL"]["value"], described()["LEGIT_BROKER_URL"]["origin"]) == (
        "redis://ours/0",
        "environment",
    )
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:secret@celerys/0")
    line = described()["LEGIT_BROKER_URL"]
    assert (line["value"], line["origin"]) == ("redis://:***@celerys/0", "CELERY_BROKER_URL")


def test_the_table_shows_values_as_they_are_and_warns_of_misspelt_variables(monkeypatch):
    monkeypatch.setenv("LEGIT_REPLY_TO_ALLOW", "[a-z]*")
    monkeypatch.setenv("LEGIT_CONCURENCY", "1")
    output = shown()
    (line,) = (line for line in output.splitlines() if line.startswith("LEGIT_REPLY_TO_ALLOW"))
    assert line.split()[1:4] == ["[a-z]*", "patterns", "environment"]
    assert "warning: LEGIT_CONCURENCY is no setting; did you mean LEGIT_CONCURRENCY?" in output
