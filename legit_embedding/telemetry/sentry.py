"""Error reports to Sentry, where `SENTRY_DSN` says so."""

import asyncio
from importlib.metadata import version

import sentry_sdk
from sentry_sdk.integrations.argv import ArgvIntegration
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.integrations.stdlib import StdlibIntegration

from legit_embedding.config import Settings
from legit_embedding.telemetry import reports

FLUSH_S = 3.0
"""How long a stopping worker waits for its last reports."""


def start_sentry(settings: Settings, *, identity: str) -> bool:
    """Sets Sentry up under the worker's identity; whether it is on.

    Envelopes carry users' texts, images and signed URLs, so no task arguments, no local variables and no trail of HTTP
    requests are sent; nor is the command line, which may hold a broker's password. Image hosts hear nothing of Sentry.
    """
    if settings.sentry_dsn is None or not settings.sentry_dsn.get_secret_value():
        return False
    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        server_name=identity,
        release=f"legit-embedding@{version('legit-embedding')}",
        integrations=[CeleryIntegration(propagate_traces=False)],
        # Those for aiohttp, Redis and others would note each request with its URL, and add headers to it.
        auto_enabling_integrations=False,
        # Flushing at exit hangs on the SDK's own patch of billiard's worker; `flush_sentry` runs as the worker stops.
        disabled_integrations=[ArgvIntegration, AtexitIntegration, StdlibIntegration],
        trace_propagation_targets=[],
        send_default_pii=False,
        include_local_variables=False,
    )
    sentry_sdk.set_tag("worker", identity)
    ignore_logger(reports.__name__)  # it reports by itself: its log line would be a second event of the same error
    return True


async def flush_sentry() -> None:
    """Returns when what was reported has been sent, or after a few seconds; at once where Sentry is off."""
    if sentry_sdk.get_client().is_active():
        await asyncio.to_thread(sentry_sdk.flush, FLUSH_S)
