"""A channel's messages, and what becomes of them."""

import base64
import contextlib
import gc
import itertools
import json

import pytest
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual
from redis import exceptions

from legit_embedding.broker import bodies
from legit_embedding.broker.holdings import Holdings, Taken
from legit_embedding.broker.qos import DELIVERY_COUNT, Message, QoS
from legit_embedding.broker.settling import BACK, FRONT


def payload_of(body="[1, 2]", *, headers=None, tag="kombu's", **more):
    properties = {
        "delivery_tag": tag,
        "delivery_info": {"exchange": "", "routing_key": "q"},
        "body_encoding": "base64",
    }
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "t"} if headers is None else headers,
        "properties": properties,
        **more,
    }


class Consumer:
    """Remembers what it is to give back and to acknowledge."""

    def __init__(self, holdings):
        self._holdings = holdings
        self.lost = False
        self.loses = False
        self.returned_now, self.returned_soon = [], []

    def ack(self, tag):
        self._holdings.ack(tag)

    def return_soon(self, message):
        self.returned_soon.append(message)

    def return_now(self, returns):
        if self.loses:
            raise exceptions.ConnectionError("gone")
        self.returned_now += returns


class Client:
    """A redis-py client, of which stock kombu asks this much."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **_):
            self.calls.append((name, *arguments))
            return self

        return call

    def named(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


class Channel:
    unacked_key = "unacked"
    unacked_index_key = "unacked_index"
    do_restore = False
    decode_body = virtual.Channel.decode_body
    encode_body = virtual.Channel.encode_body
    codecs = virtual.Channel.codecs

    def __init__(self):
        self.arriving = None
        self.holdings = Holdings()
        self.consumer = Consumer(self.holdings)
        self.client = Client()
        self.qos = QoS(self, 10)
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def conn_or_acquire(self, client=None):
        yield client or self.client

    def take(self, *, deliveries=0, **more):
        """A message of ours, as it is delivered."""
        payload = payload_of(**more)
        taken = Taken(f"line.1.{next(self._numbers)}", "q", json.dumps(payload).encode(), deliveries)
        self.holdings.hold(taken)
        self.arriving = taken
        message = Message(payload, channel=self)
        self.arriving = None
        self.qos.append(message, message.delivery_tag)
        return message

    def acks(self):
        return self.holdings.take_acks(100)[0]


@pytest.fixture
def channel():
    return Channel()


# -- a message ---------------------------------------------------------------------------------------------------------


def test_a_message_that_was_taken_has_the_takes_tag_and_is_otherwise_as_it_was_sent(channel):
    message = channel.take()
    assert message.delivery_tag == "line.1.1"
    assert message.headers == {"task": "t"}
    assert message.delivery_info == {"exchange": "", "routing_key": "q"}
    assert message.body == b"[1, 2]"


def test_a_message_that_was_not_taken_has_its_own_tag(channel):
    message = Message(payload_of(), channel=channel)
    assert message.delivery_tag == "kombu's"
    assert DELIVERY_COUNT not in message.headers


@pytest.mark.parametrize("headers", [{"task": "t"}, {}])
def test_a_message_that_was_given_back_before_says_how_often_and_is_marked_as_redelivered(channel, headers):
    message = channel.take(deliveries=3, headers=headers)
    assert message.headers[DELIVERY_COUNT] == 3
    assert message.delivery_info["redelivered"] is True
    assert message._raw["headers"]["redelivered"] is True


def test_a_message_without_headers_and_delivery_info_is_counted_too(channel):
    payload = payload_of()
    del payload["headers"], payload["properties"]["delivery_info"]
    channel.arriving = Taken("tag", "q", b"", 1)
    message = Message(payload, channel=channel)
    assert message.headers[DELIVERY_COUNT] == 1


# -- its body ----------------------------------------------------------------------------------------------------------


TYPED = '{"at": {"__type__": "datetime", "__value__": "2024-05-06T07:08:09"}}'


@pytest.mark.parametrize("body", ["[1, 2.5, null]", '{"a": [], "b": {}, "ü": "✓"}', '"text"', TYPED, ""])
@pytest.mark.parametrize("large", [False, True])
def test_a_body_is_decoded_as_kombu_does_it(channel, monkeypatch, body, large):
    if large:
        monkeypatch.setattr(bodies, "LARGE_CHARS", 0)
    payload = payload_of(body)
    assert Message(payload, channel=channel).decode() == virtual.Message(payload, channel=channel).decode()


def test_a_body_with_kombus_mark_of_an_object_becomes_that_object(channel):
    assert Message(payload_of(TYPED), channel=channel).decode()["at"].isoformat() == "2024-05-06T07:08:09"


def test_a_body_that_is_no_json_is_refused_as_kombu_does_it(channel):
    with pytest.raises(DecodeError):
        Message(payload_of("{no"), channel=channel).decode()


def test_a_body_of_a_kind_that_is_not_accepted_is_not_decoded(channel):
    message = Message(payload_of("[1]"), channel=channel, accept={"application/x-yaml"})
    with pytest.raises(ContentDisallowed):
        message.decode()


def test_a_body_of_an_accepted_kind_is_decoded(channel):
    assert Message(payload_of("[1]"), channel=channel, accept={"application/json"}).decode() == [1]


# -- acknowledging -----------------------------------------------------------------------------------------------------


def test_a_delivered_message_takes_its_place_of_the_prefetch_and_no_round_trip(channel):
    for _ in range(10):
        assert channel.qos.can_consume()
        channel.take()
    assert not channel.qos.can_consume()
    assert channel.client.calls == []


def test_an_ack_frees_its_place_and_is_told_by_the_consumer(channel):
    messages = [channel.take() for _ in range(10)]
    channel.qos.ack(messages[3].delivery_tag)
    assert channel.qos.can_consume()
    assert channel.acks() == [messages[3].delivery_tag]
    assert channel.client.calls == []


def test_an_ack_without_a_consumer_is_kept_for_the_next_one(channel):
    tag = channel.take().delivery_tag
    channel.consumer = None
    channel.qos.ack(tag)
    assert channel.acks() == [tag]


def test_a_second_ack_is_no_second_one_of_ours(channel):
    tag = channel.take().delivery_tag
    channel.qos.ack(tag)
    channel.qos.ack(tag)
    assert channel.acks() == [tag]


def test_a_message_that_stock_kombu_took_is_recorded_and_acknowledged_by_stock_kombu(channel):
    message = Message(payload_of(), channel=channel)
    channel.qos.append(message, "kombu's")
    assert channel.client.named("hset")[0][:2] == ("unacked", "kombu's")
    channel.qos.ack("kombu's")
    assert channel.client.named("hdel") == [("unacked", "kombu's")]
    assert channel.acks() == []
    assert channel.qos.can_consume()


# -- giving back -------------------------------------------------------------------------------------------------------


def test_a_reject_without_requeue_is_an_ack(channel):
    tag = channel.take().delivery_tag
    channel.qos.reject(tag)
    assert channel.acks() == [tag]
    assert channel.consumer.returned_soon == []


def test_a_reject_with_requeue_puts_the_message_where_new_ones_are_put_marked_and_counted(channel):
    message = channel.take(deliveries=1)
    channel.qos.reject(message.delivery_tag, requeue=True)
    (back,) = channel.consumer.returned_soon
    assert (back.tag, back.side, back.counted) == (message.delivery_tag, BACK, True)
    text = json.loads(back.text)
    assert text["headers"] == {"task": "t", "redelivered": True}
    assert text["properties"]["delivery_info"]["redelivered"] is True
    assert text["body"] == payload_of()["body"]
    assert channel.acks() == []
    assert message.delivery_tag not in channel.holdings


def test_a_rejected_message_frees_its_place(channel):
    messages = [channel.take() for _ in range(10)]
    channel.qos.reject(messages[0].delivery_tag, requeue=True)
    assert channel.qos.can_consume()


@pytest.mark.parametrize("gone", [True, False])
def test_a_reject_with_requeue_while_the_connection_is_lost_goes_back_over_the_next_one(channel, gone):
    tag = channel.take().delivery_tag
    if gone:
        channel.consumer = None
    else:
        channel.consumer.lost = True
    channel.qos.reject(tag, requeue=True)
    assert channel.holdings.living == [tag]
    assert channel.holdings.take_dropped() == [tag]


@pytest.mark.parametrize("headers", ["missing", None])
def test_a_message_without_headers_is_given_back_too(channel, headers):
    message = channel.take()
    if headers is None:
        message._raw["headers"] = None
    else:
        del message._raw["headers"]
    channel.qos.reject(message.delivery_tag, requeue=True)
    assert [each.tag for each in channel.consumer.returned_soon] == [message.delivery_tag]


def test_what_is_not_settled_is_restored_newest_first_so_that_the_oldest_is_taken_first_again(channel):
    tags = [channel.take().delivery_tag for _ in range(5)]
    channel.qos.ack(tags[1])
    channel.qos.restore_unacked()
    returned = channel.consumer.returned_now
    assert [each.tag for each in returned] == [tags[4], tags[3], tags[2], tags[0]]
    assert {(each.side, each.counted) for each in returned} == {(FRONT, True)}
    assert all(json.loads(each.text)["headers"]["redelivered"] for each in returned)
    assert channel.acks() == [tags[1]]
    assert channel.holdings.living == []


def test_a_second_restore_finds_nothing(channel):
    channel.take()
    channel.qos.restore_unacked()
    channel.qos.restore_unacked()
    assert len(channel.consumer.returned_now) == 1


def test_the_count_that_a_message_came_with_is_not_written_into_it(channel):
    channel.take(deliveries=4)
    channel.qos.restore_unacked()
    assert DELIVERY_COUNT not in json.loads(channel.consumer.returned_now[0].text)["headers"]


def test_what_could_not_be_restored_because_the_connection_broke_is_left_to_its_lease(channel):
    channel.take()
    channel.consumer.loses = True
    channel.qos.restore_unacked()
    assert channel.holdings.living == []


@pytest.mark.parametrize("gone", [True, False])
def test_with_a_lost_connection_a_message_is_kept_for_as_long_as_somebody_works_on_it(channel, gone):
    message, forgotten = channel.take(), channel.take()
    tags = [message.delivery_tag, forgotten.delivery_tag]
    if gone:
        channel.consumer = None
    else:
        channel.consumer.lost = True
    channel.qos.restore_unacked()
    assert sorted(channel.holdings.living) == tags
    del forgotten
    gc.collect()
    assert channel.holdings.take_dropped() == tags[1:]
    channel.qos.ack(message.delivery_tag)
    assert channel.acks() == tags[:1]


def test_stock_kombus_messages_are_restored_by_stock_kombu(channel):
    channel.qos.append(Message(payload_of(), channel=channel), "kombu's")
    ours = channel.take().delivery_tag
    channel.qos.restore_unacked()
    assert [each.tag for each in channel.consumer.returned_now] == [ours]
    assert len(channel.client.named("transaction")) == 1
