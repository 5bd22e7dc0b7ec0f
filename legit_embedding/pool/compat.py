"""What differs between the versions of Celery that the pool runs on: 5.5, 5.6 and 5.7. No other module asks for one.

Two places elsewhere take what comes in either form: `controller.serve_acks_and_timers` and `events.Events.flush`.
"""

from typing import Any

from celery import version_info
from celery.worker import state

CELERY = version_info[:2]

SAYS_COLD_ITSELF = CELERY >= (5, 6)
"""Whether Celery says that a shutdown is cold before it stops the pool; 5.5 does so only afterwards."""

TIMEOUT_CALLBACK_TELLS_ALL = CELERY >= (5, 7)
"""Whether Celery's callback for a hard time limit does all that a failure needs.

Before 5.7 it only stores the failure: no signal, no event, and a message that is not to be acknowledged stays with the
worker. The callback for errors does it all there. Not both, as in Celery's prefork pool: it stores the failure twice,
and runs `link_error` twice.
"""


SENDS_EMPTY_GROUPS = CELERY < (5, 7)
"""Whether Celery's dispatcher of events sends a message for a group of which there are none."""


def announce_cold_shutdown() -> None:
    """Called when the wait before a cold shutdown is over, so that the pool's stop is not taken for a warm one.

    Celery 5.6 and 5.7 say so themselves a moment later. Too early for them: what they cancel until then, and what
    failed just before, has its events and results only while they have not said it.
    """
    if not SAYS_COLD_ITSELF:
        state.should_terminate = True


def cancel_requests(consumer: Any) -> None:
    """Cancels the requests that run, as a cold shutdown does; the method has another name in Celery 5.5."""
    cancel = getattr(consumer, "cancel_active_requests", None) or consumer.cancel_all_unacked_requests
    cancel()
