"""Our dispatcher held against Celery's: the same calls, the same events."""

import json
import re
import time
import uuid
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from celery import Celery
from celery.events.dispatcher import EventDispatcher as CelerysDispatcher
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization
from kombu.utils.json import dumps

from legit_embedding.pool import events

GROUPS = ["task", "billing"]
TYPES = ["task-received", "task-started", "task-100%-done", "task", "billing-paid", "worker-heartbeat"]
LIMIT = 3


class Broker:
    """In the place of kombu's producer; notes what is published, as text, or cannot be reached."""

    def __init__(self):
        self.messages = []
        self.online = True

    def publish(self, body, *, routing_key, content_type=None, content_encoding=None, serializer=None, **options):
        if not self.online:
            raise OSError("offline")
        if content_type is None:
            content_type, content_encoding, body = serialization.dumps(body, serializer=serializer)
        options = {name: value for name, value in options.items() if not name.startswith("retry")}
        self.messages.append((routing_key, body, content_type, content_encoding, options))

    @property
    def sizes(self):
        """How many events each message has."""
        return [len(json.loads(body)) for key, body, *_ in self.messages if key.endswith(".multi")]

    @property
    def told(self):
        """Each event with the key it went by, in order."""
        found = []
        for key, body, *_ in self.messages:
            content = json.loads(body)
            found.extend((key, event) for event in (content if isinstance(content, list) else [content]))
        return found

    @property
    def uuids(self):
        return [event["uuid"] for _, event in self.told]


class Side:
    """One dispatcher with a logical clock and a loop of its own."""

    def __init__(self, app, make=events.EventDispatcher, **options):
        self.broker, self.asked, self.app = Broker(), 0, app
        options = {"buffer_group": GROUPS, "buffer_limit": LIMIT, "on_send_buffered": self._ask, **options}
        self.dispatcher = make(app.connection_for_write(), hostname='n"o%de@test', app=app, **options)
        self.dispatcher.clock = type(app.clock)()
        self.dispatcher.publisher = self.broker

    def _ask(self):
        self.asked += 1

    def send(self, *uuids):
        for name in uuids:
            self.dispatcher.send("task-started", uuid=name)

    def turn(self):
        """Of the loop."""
        if self.asked:
            self.asked = 0
            self.dispatcher.flush()

    def enable(self):
        self.dispatcher.enable()
        self.dispatcher.publisher = self.broker


@pytest.fixture(scope="module")
def app():
    with Celery("events", broker="memory://", set_as_current=False) as own:
        yield own


@pytest.fixture
def ours(app):
    return Side(app)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.sampled_from([uuid.UUID(int=1), Decimal("1.5"), datetime(2024, 1, 1, tzinfo=UTC), b"bytes"])
)
NAMES = st.sampled_from(["uuid", "name", "result", "runtime", "x", "50% é"])
FIELDS = st.dictionaries(NAMES, VALUES, max_size=4)
ODD = st.fixed_dictionaries(
    {}, optional={"blind": st.just(True), "utcoffset": st.just(lambda: -3.5), "timestamp": st.just(1.5)}
)
STEPS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(TYPES), FIELDS),
    st.tuples(st.just("send"), st.sampled_from(TYPES), st.builds(lambda odd, fields: {**fields, **odd}, ODD, FIELDS)),
    st.tuples(st.just("groups"), st.sampled_from([[], ["task"], ["worker"], ["task", "billing"]])),
    st.tuples(st.just("turn")),
    st.tuples(st.just("off and on")),
)


def play(side, steps):
    for kind, *rest in steps:
        if kind == "send":
            side.dispatcher.send(rest[0], **rest[1])
        elif kind == "groups":
            side.dispatcher.groups = set(rest[0])
        elif kind == "turn":
            side.turn()
        else:
            side.turn()
            side.dispatcher.disable()
            side.dispatcher.send("task-received", uuid="unheard")
            side.enable()
    side.turn()


def timeless(messages):
    """The same, with now for a time, and without the empty ones that Celery's sent before 5.7."""
    return [
        (key, re.sub(r'"timestamp": \d{10}\.\d+', '"timestamp": "now"', body), *rest)
        for key, body, *rest in messages
        if body != "[]"
    ]


@given(st.lists(STEPS, max_size=30))
def test_the_same_calls_send_the_same_messages_as_celerys_dispatcher_byte_by_byte(app, steps):
    model, ours = Side(app, CelerysDispatcher), Side(app)
    play(model, steps)
    play(ours, steps)
    assert timeless(ours.broker.messages) == timeless(model.broker.messages)


# -- when they are sent ------------------------------------------------------------------------------------------------


def test_events_wait_for_the_turn_of_the_loop_which_is_asked_for_once(ours):
    ours.send("a", "b")
    assert (ours.asked, ours.broker.told) == (1, [])
    ours.turn()
    assert (ours.broker.uuids, ours.broker.sizes) == (["a", "b"], [2])


def test_a_full_group_goes_at_once(ours):
    ours.send(*"abcd")
    assert ours.broker.sizes == [LIMIT]
    ours.turn()
    assert ours.broker.uuids == ["a", "b", "c", "d"]


def test_each_turn_is_asked_for_anew(ours):
    for name in "abc":
        ours.send(name)
        ours.turn()
    assert ours.broker.sizes == [1, 1, 1]


def test_a_group_that_is_not_buffered_goes_at_once_and_alone(ours):
    ours.dispatcher.send("worker-heartbeat", freq=2)
    (key, event), asked = ours.broker.told[0], ours.asked
    assert (key, event["freq"], asked) == ("worker.heartbeat", 2, 0)


def test_a_worker_without_a_loop_sends_each_event_alone(app):
    side = Side(app, buffer_group=None, on_send_buffered=None)
    side.send("a", "b")
    assert [key for key, _ in side.broker.told] == ["task.started"] * 2


def test_one_message_takes_more_events_than_celerys(app):
    side = Side(app, buffer_limit=events.GROUP_LIMIT)
    assert events.EventDispatcher(app.connection_for_write(), app=app).buffer_limit == events.GROUP_LIMIT > 24
    side.send(*map(str, range(events.GROUP_LIMIT)))
    assert side.broker.sizes == [events.GROUP_LIMIT]


def test_what_is_sent_during_a_flush_waits_for_the_next(ours):
    """As from the handler of a signal that interrupts it: it must not wait for what waits for it."""
    publish = ours.broker.publish

    def interrupted(*args, **options):
        ours.broker.publish = publish
        ours.send(*"bcdef")
        publish(*args, **options)

    ours.broker.publish = interrupted
    ours.send("a")
    ours.turn()
    assert ours.broker.uuids == ["a"]
    ours.turn()
    assert ours.broker.uuids == ["a", *"bcdef"]


# -- off, offline, over a new connection -------------------------------------------------------------------------------


def test_what_is_buffered_when_events_are_turned_off_goes_when_they_are_on_again(ours):
    ours.send("a")
    ours.dispatcher.disable()
    ours.turn()
    ours.send("unheard")
    assert ours.broker.told == []
    ours.enable()
    ours.send("b")
    ours.turn()
    assert ours.broker.uuids == ["a", "b"]


def test_turning_events_on_and_off_is_told_to_who_asked(ours):
    told = []
    ours.dispatcher.on_enabled.add(lambda: told.append("on"))
    ours.dispatcher.on_disabled.add(lambda: told.append("off"))
    ours.dispatcher.disable()
    ours.enable()
    assert told == ["off", "on"]


def test_what_cannot_be_sent_is_sent_later_in_its_order(ours):
    ours.broker.online = False
    ours.dispatcher.send("task-succeeded", uuid="a", result=Decimal("1.5"), runtime=0.1)
    ours.turn()
    ours.send("b")
    ours.turn()
    ours.broker.online = True
    ours.send("c")
    ours.turn()
    assert ours.broker.uuids == ["a", "b", "c"]
    assert dumps(Decimal("1.5")) in ours.broker.messages[0][1]


def test_the_next_connections_dispatcher_takes_over_what_was_not_sent(app, ours):
    ours.broker.online = False
    ours.send("a")
    ours.turn()
    ours.send("b")
    ours.dispatcher.disable()
    after = Side(app)
    after.dispatcher.extend_buffer(ours.dispatcher)
    after.dispatcher.flush()
    assert after.broker.uuids == ["a", "b"]


def test_one_that_keeps_nothing_while_offline_says_so(app):
    side = Side(app, buffer_while_offline=False)
    side.send("a")
    side.broker.online = False
    with pytest.raises(OSError, match="offline"):
        side.turn()


# -- what is in them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, ["task"]])
def test_a_serializer_that_is_not_registered_is_left_to_celery(app, groups):
    """Which finds out with the first event, if there ever is one."""
    dispatcher = events.EventDispatcher(app=app, enabled=False, serializer="nowhere", buffer_group=groups)
    assert dispatcher.serializer == "nowhere"


@pytest.fixture
def zone(monkeypatch):
    """Moves this process to another time zone."""
    with monkeypatch.context() as patch:

        def move(name):
            patch.setenv("TZ", name)
            time.tzset()

        yield move
    time.tzset()


def test_summer_time_begins_with_the_next_turn(ours, zone):
    for name in ("WINTER-1", "SUMMER-2"):
        zone(name)
        ours.dispatcher.flush()
        ours.send(name)
        ours.turn()
    assert [event["utcoffset"] for _, event in ours.broker.told] == [-1.0, -2.0]


def test_a_field_that_every_event_has_is_an_error_as_in_celery(ours):
    with pytest.raises(TypeError, match="hostname"):
        ours.dispatcher.send("task-started", hostname="other")


def test_what_is_no_json_does_not_reach_the_caller(ours):
    ours.dispatcher.send("task-started", uuid="a", result=object())
    ours.send("b")
    ours.turn()
    assert ours.broker.uuids == ["b"]


def test_many_shapes_of_events_are_not_all_remembered(ours):
    for number in range(3 * events.MOST_SHAPES):
        ours.dispatcher.send("task-custom", **{"uuid": str(number), f"field {number}": 1})
    ours.turn()
    assert ours.broker.uuids == [str(number) for number in range(3 * events.MOST_SHAPES)]
    assert len(ours.dispatcher._shapes) <= events.MOST_SHAPES


@pytest.mark.parametrize(("serializer", "same"), [("json", True), ("yaml", False), ("pickle", False)])
def test_a_serializer_is_known_by_what_it_writes(serializer, same):
    assert events.writes_json(serializer) is same


def test_another_serializer_is_left_to_celery(app):
    side = Side(app, serializer="pickle")
    side.send("a", "b")
    side.turn()
    assert [message[2] for message in side.broker.messages] == ["application/x-python-serialize"]
