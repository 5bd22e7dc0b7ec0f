"""The table itself."""

from tests.conformance.table import Outcome, write_table


def outcome(said, *, behaviour="a task returns", column="threads, valkey", reason=""):
    return Outcome(subject="Tasks", behaviour=behaviour, column=column, said=said, reason=reason)


def written(tmp_path, *outcomes):
    path = tmp_path / "table.md"
    write_table(path, outcomes)
    return path.read_text(encoding="utf-8")


def test_each_outcome_has_its_cell_and_is_counted(tmp_path):
    text = written(
        tmp_path,
        outcome("passed", column="ours, valkey"),
        outcome("failed"),
        outcome("n/a", behaviour="a limit", reason="no limits there"),
    )
    assert "| a task returns | yes | **no** |" in text
    assert "| a limit |  | n/a |" in text
    assert "- n/a, threads, valkey, a limit: no limits there" in text
    assert "| **no** | 0 | 1 |" in text


def test_a_behaviour_that_passes_and_fails_afterwards_has_failed(tmp_path):
    assert "| a task returns | **no** |" in written(tmp_path, outcome("passed"), outcome("failed"))
    assert "| a task returns | **no** |" in written(tmp_path, outcome("failed"), outcome("passed"))
