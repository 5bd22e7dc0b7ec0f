"""A task's message as the worker holds it: decoded once, not once on the consumer's thread and again in the tracer."""

from typing import Any

from celery.worker.request import Request


class DecodedRequest(Request):
    """Celery's; what its consumer had to decode to see which protocol it is goes on to the tracer as it is."""

    _content_type: str | None

    def __init__(self, message: Any, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        payload = getattr(message, "_decoded_cache", None)
        if payload is not None and self._content_type is not None:
            self._body = payload
            self._content_type = self._content_encoding = None  # what the tracer takes for: nothing to decode
