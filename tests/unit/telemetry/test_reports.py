"""Reports: once a cause."""

import logging

import pytest
import sentry_sdk
from sentry_sdk.integrations.logging import ignore_logger

from legit_embedding.telemetry import reports
from legit_embedding.telemetry.reports import QUIET_S, SentryReporter
from legit_embedding.testing.clock import FakeClock


@pytest.fixture
def events():
    """What Sentry would have sent, with nothing leaving this process."""
    sent = []
    sentry_sdk.init(
        dsn="https://key@sentry.invalid/1", before_send=lambda event, _: sent.append(event), integrations=[]
    )
    ignore_logger(reports.__name__)
    yield sent
    sentry_sdk.init(dsn=None)


def test_a_cause_is_reported_once_however_many_items_meet_it(events, caplog):
    reporter = SentryReporter(clock=FakeClock())
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            reporter.report(MemoryError("full"), cause="out-of-memory:clip", device="cuda:0")
    assert len(events) == 1
    assert [record.getMessage() for record in caplog.records] == ["out-of-memory:clip: full"]


def test_an_event_carries_its_cause_as_fingerprint_and_what_was_told_as_tags(events):
    SentryReporter(clock=FakeClock()).report(MemoryError("full"), cause="out-of-memory:clip", device="cuda:0")
    (event,) = events
    assert event["fingerprint"] == ["out-of-memory:clip"]
    assert event["tags"] == {"cause": "out-of-memory:clip", "device": "cuda:0"}
    assert event["exception"]["values"][0]["type"] == "MemoryError"


def test_causes_are_counted_by_themselves(events):
    reporter = SentryReporter(clock=FakeClock())
    reporter.report(MemoryError(), cause="out-of-memory:clip")
    reporter.report(MemoryError(), cause="out-of-memory:minilm")
    assert len(events) == 2


async def test_a_cause_that_persists_is_told_again_after_an_hour(events):
    clock = FakeClock()
    reporter = SentryReporter(clock=clock)
    reporter.report(MemoryError(), cause="c")
    await clock.advance(QUIET_S - 1)
    reporter.report(MemoryError(), cause="c")
    assert len(events) == 1
    await clock.advance(1)
    reporter.report(MemoryError(), cause="c")
    assert len(events) == 2
