"""Task events for less: Celery's own dispatcher, with less work for each event and fewer messages.

    app = Celery("mine", events="legit_embedding.pool.events:Events")

Monitors receive what Celery's own dispatcher sends, only more of it in one message. It works under any pool and with
any broker.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from json.encoder import encode_basestring_ascii
from math import isfinite
from time import time
from typing import Any, TypeAlias

from celery.app import events
from celery.events import dispatcher
from celery.events.event import Event, group_from
from celery.utils.time import utcoffset as offset_to_utc
from kombu import serialization
from kombu.utils.json import dumps

from legit_embedding.pool import compat

make_event = Event

GROUP_LIMIT = 100
"""Events in one message at most; Celery's own default is 24."""

MOST_SHAPES = 100
"""Celery's own events have a dozen shapes."""

JSON = {"content_type": "application/json", "content_encoding": "utf-8"}

CONSTANT = frozenset({"hostname", "utcoffset", "pid", "clock", "timestamp"})
"""What each event has, whatever its fields."""


def _float(value: float) -> str:
    return repr(value) if isfinite(value) else dumps(value)


class _Writers(dict[type, Callable[[Any], str]]):
    def __missing__(self, kind: type) -> Callable[[Any], str]:
        return dumps


WRITERS = _Writers({str: encode_basestring_ascii, int: int.__repr__, float: _float, type(None): lambda _: "null"})
"""What writes a value as kombu does; of the plain values that nearly all fields have, by their exact type, sooner."""


def writes_json(serializer: str) -> bool:
    """Whether it writes what kombu's own JSON serializer does; a site may have registered another by that name."""
    sample = [{"name": "é\n", "value": [None, 1, 0.1, True]}]
    try:
        return bool(serialization.dumps(sample, serializer=serializer) == (*JSON.values(), dumps(sample)))
    except Exception:  # noqa: BLE001  one that is not registered, or takes no such thing: Celery will tell
        return False


_Shape: TypeAlias = tuple[list[str], str]
"""The buffer of a group, and the template of its events of one type with the same fields."""


class EventDispatcher(dispatcher.EventDispatcher):
    """Buffers the events of a worker's busy groups for at most one turn of its loop, as Celery's does.

    It writes an event down when it is sent, while its fields are still in the processor's cache, from a template with
    all that is the same in each event of its shape.
    """

    def __init__(self, *args: Any, buffer_limit: int = GROUP_LIMIT, **options: Any) -> None:
        super().__init__(*args, buffer_limit=buffer_limit, **options)
        # The others are left to Celery.
        own = self.buffer_group and writes_json(self.serializer)
        self._own_groups = frozenset(self.buffer_group) if own else frozenset()
        self._buffers: dict[str, list[str]] = {}
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._offset = offset_to_utc()
        self._flush_is_due = False

    def send(  # noqa: D102  Celery's own
        self,
        type: str,  # noqa: A002  Celery's name
        blind: bool = False,
        utcoffset: Any = offset_to_utc,
        retry: bool = False,
        retry_policy: Any = None,
        Event: Any = make_event,  # noqa: N803  as above
        **fields: Any,
    ) -> Any:
        if not self.enabled or (self.groups and group_from(type) not in self.groups):
            return None  # the second without -E, for each event of each task
        shape = self._shapes.get((type, *fields))
        if shape is None or utcoffset is not offset_to_utc or Event is not make_event:
            return self._send_odd(type, blind, utcoffset, retry, retry_policy, Event, fields)
        buffer, template = shape
        try:
            values = [WRITERS[value.__class__](value) for value in fields.values()]
        except (TypeError, ValueError):  # no JSON
            return super().send(type, blind, utcoffset, retry, retry_policy, Event, **fields)
        self._buffer(buffer, template % (self.clock.forward(), *values, time()))
        return None

    def _send_odd(
        self, kind: str, blind: bool, utcoffset: Any, retry: bool, retry_policy: Any, make: Any, fields: dict[str, Any]
    ) -> Any:
        group = group_from(kind)
        if group in self._own_groups:
            buffer = self._buffers.setdefault(group, [])
            if utcoffset is offset_to_utc and make is make_event and CONSTANT.isdisjoint(fields):
                self._learn(buffer, kind, fields)
                return self.send(kind, **fields)
            with suppress(TypeError, ValueError):  # no JSON, or a field given twice: Celery's way to fail is well known
                event = make(
                    kind,
                    hostname=self.hostname,
                    utcoffset=utcoffset(),
                    pid=self.pid,
                    clock=self.clock.forward(),
                    **fields,
                )
                self._buffer(buffer, dumps(event))
                return None
        return super().send(kind, blind, utcoffset, retry, retry_policy, make, **fields)

    def _learn(self, buffer: list[str], kind: str, names: Iterable[str]) -> None:
        """For events of that type with those fields."""
        start = dumps({"hostname": self.hostname, "utcoffset": self._offset, "pid": self.pid})[:-1]
        start, end, *starts = (text.replace("%", "%%") for text in (start, dumps(kind), *map(dumps, names)))
        values = "".join(f"{name}: %s, " for name in starts)
        if len(self._shapes) >= MOST_SHAPES:
            self._shapes.clear()
        template = f'{start}, "clock": %d, {values}"timestamp": %r, "type": {end}}}'
        self._shapes[kind, *names] = (buffer, template)

    def _buffer(self, buffer: list[str], text: str) -> None:
        buffer.append(text)
        # A signal's handler may get here in the middle of a flush, which goes on only after it: it must not wait.
        if len(buffer) >= self.buffer_limit and not self.mutex.locked():
            self.flush()
        elif not self._flush_is_due and self.on_send_buffered:
            self._flush_is_due = True  # one flush takes all that comes until then
            self.on_send_buffered()

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """As Celery's."""
        # Before the buffers are read: who adds to them from now on asks for a flush of its own.
        self._flush_is_due = False
        offset = offset_to_utc()
        if offset != self._offset:  # summer time may begin at any turn of the loop
            self._offset = offset
            self._shapes.clear()
        if compat.SENDS_EMPTY_GROUPS:
            for group in [group for group, waiting in self._group_buffer.items() if not waiting]:
                del self._group_buffer[group]
        if errors and self.producer is not None:
            # Here, because before Celery 5.7 what cannot be sent for a second time is lost.
            unsent = list(self._outbound_buffer)
            self._outbound_buffer.clear()
            with self.mutex:
                for event, routing_key, *_ in unsent:  # Celery's own appends the error to these before 5.7
                    self._publish(event, self.producer, routing_key)
        super().flush(errors=False, groups=groups)
        if groups:
            with self.mutex:
                for group, buffer in list(self._buffers.items()):
                    if buffer and self.producer is not None:
                        texts = list(buffer)
                        self._publish_texts(texts, f"{group}.multi")
                        del buffer[: len(texts)]

    def extend_buffer(self, other: Any) -> None:
        """As Celery's, and what `other` has not tried to send yet as well."""
        super().extend_buffer(other)
        for group, buffer in getattr(other, "_buffers", {}).items():
            self._buffers.setdefault(group, []).extend(buffer)

    def _publish_texts(self, texts: list[str], routing_key: str) -> None:
        body = f"[{', '.join(texts)}]"
        try:
            self.producer.publish(
                body,
                routing_key=routing_key,
                exchange=self.exchange.name,
                declare=[self.exchange],
                headers=self.headers,
                delivery_mode=self.delivery_mode,
                **JSON,
            )
        except Exception:
            if not self.buffer_while_offline:
                raise
            self._outbound_buffer.append((json.loads(body), routing_key))


class Events(events.Events):
    """For `app.events`."""

    dispatcher_cls = "legit_embedding.pool.events:EventDispatcher"
