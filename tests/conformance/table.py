"""The table of what came out, as Markdown."""

import platform
import re
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version

MARKS = {"passed": "yes", "failed": "**no**", "n/a": "n/a"}

HEAD = """# What each pool does

Made by `make conformance` from runs of `tests/conformance`, never by hand. Each line is one test with a real worker on
a real broker: yes, it passed; **no**, it failed on that pool; n/a, with the reason below its table. `async def`
tasks run under Celery's own pools too, each in a loop of its own. Those pools run on Valkey alone.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one behaviour on one pool and broker."""

    subject: str
    behaviour: str
    column: str
    said: str
    reason: str

    @classmethod
    def of(cls, item, *, pool, broker, said, reason):
        """From a test: its module's docstring names the subject, its name and parameters the behaviour."""
        subject = (item.module.__doc__ or item.module.__name__).strip().splitlines()[0].rstrip(".")
        words = item.originalname.removeprefix("test_").replace("_", " ")
        details = [str(part) for part in re.findall(r"\[(.*)\]", item.name)[:1]]
        details = [part.replace(f"{pool}-{broker}", "").strip("-") for part in details]
        suffix = f" ({details[0]})" if details and details[0] else ""
        return cls(subject, f"{words}{suffix}", f"{pool}, {broker}", said, reason)


def write_table(path, outcomes):
    """Writes everything that was run, by subject."""
    columns = list(dict.fromkeys(outcome.column for outcome in outcomes))
    subjects = defaultdict(dict)
    for outcome in outcomes:
        row = subjects[outcome.subject].setdefault(outcome.behaviour, {})
        before = row.get(outcome.column)
        # A test that passes and whose teardown fails has failed.
        if before is None or before.said != "failed":
            row[outcome.column] = outcome
    versions = f"celery {version('celery')}, kombu {version('kombu')}, Python {platform.python_version()}"
    lines = [HEAD, f"Versions: {versions}.", ""]
    lines += _totals(columns, outcomes)
    for subject, rows in subjects.items():
        lines += ["", f"## {subject}", "", *_rows(columns, rows)]
        reasons = dict.fromkeys(
            f"- n/a, {outcome.column}, {behaviour}: {outcome.reason}"
            for behaviour, row in rows.items()
            for outcome in row.values()
            if outcome.said == "n/a"
        )
        if reasons:
            lines += ["", *reasons]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(columns, rows):
    yield "| behaviour | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for behaviour, row in rows.items():
        cells = [MARKS[row[column].said] if column in row else "" for column in columns]
        yield f"| {behaviour} | " + " | ".join(cells) + " |"


def _totals(columns, outcomes):
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for said, mark in MARKS.items():
        counts = [
            len({o.behaviour + o.subject for o in outcomes if (o.column, o.said) == (column, said)})
            for column in columns
        ]
        yield f"| {mark} | " + " | ".join(map(str, counts)) + " |"
