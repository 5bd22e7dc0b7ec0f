"""The command as a whole: what it says, and how it exits, where a setting cannot be used."""

import sys

import pytest

from legit_embedding.cli import main


@pytest.mark.parametrize("value", ["many", "[/bold]"])
def test_an_error_of_ours_is_one_line_and_exit_code_2(monkeypatch, capsys, value):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("LEGIT_CONCURRENCY", value)
    monkeypatch.setattr(sys, "argv", ["legit-embedding", "config"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: LEGIT_CONCURRENCY: ")
    assert f"(got '{value}')" in line
