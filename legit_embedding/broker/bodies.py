"""A body, decoded as kombu does it; its own way makes a new JSON decoder for each, and calls Python for each object."""

import json
from typing import Any

JSON = "application/json"
UTF_8 = frozenset({None, "", "utf-8"})

OBJECT_MARK = '"__type__"'
"""Stands in kombu's JSON where it is to become an object of Python's."""

LARGE_CHARS = 1 << 20
"""Of a body for which a look for that mark would cost more than it saves."""

OTHER = object()
"""Stands for a body that is left to kombu: no JSON, JSON that may not be accepted, or with Python's objects in it."""


def plain_json(message: Any) -> Any:
    """What the body of a kombu message says, or OTHER. Never raises: what is wrong with a body, kombu says best."""
    body = message.body
    trusted = message.accept is None or message.content_type in message.accept
    if not trusted or message.content_type != JSON or message.content_encoding not in UTF_8:
        return OTHER
    if not isinstance(body, str | bytes) or len(body) >= LARGE_CHARS:
        return OTHER
    try:
        text = body if isinstance(body, str) else body.decode()
        return OTHER if OBJECT_MARK in text else json.loads(text)
    except (ValueError, RecursionError):  # the second: lists in lists, thousands of them
        return OTHER
