"""A channel whose consumer takes many messages a round trip.

Where there is no event loop (producers, `drain_events`, gevent), and where the server does not let us run scripts, it
is kombu's own. Keys and messages are the same in both.
"""

import logging
from collections.abc import Hashable
from functools import cached_property
from typing import Any

import redis
from kombu.transport import redis as stock
from kombu.utils.compat import register_after_fork
from kombu.utils.json import dumps
from redis import exceptions

from legit_embedding.broker import compat
from legit_embedding.broker.caretaker import Caretaker
from legit_embedding.broker.consumer import Consumer, Options
from legit_embedding.broker.holdings import Holdings, forget_all, holdings_of
from legit_embedding.broker.names import Keys
from legit_embedding.broker.qos import Message, QoS
from legit_embedding.broker.scripts import TAKE_MAX

logger = logging.getLogger(__name__)

DEFAULTS = Options()
OPTIONS = ("take_messages", "take_bytes", "takes_in_flight", "lease_s", "push_wake_ups")
"""Of ours among the transport's options."""

MIN_TIMEOUT_S = 10.0


class Channel(stock.Channel):
    """For `redis://` and `rediss://`; see `Consumer` for the flow of a message."""

    QoS = QoS
    Message = Message

    take_messages = DEFAULTS.take_messages
    take_bytes = DEFAULTS.take_bytes
    takes_in_flight = DEFAULTS.takes_in_flight
    lease_s = DEFAULTS.lease_s
    push_wake_ups = DEFAULTS.pushes

    unacked_restore_interval: float = compat.RESTORE_DEFAULTS["unacked_restore_interval"]
    unacked_restore_throttle: float = compat.RESTORE_DEFAULTS["unacked_restore_throttle"]

    from_transport_options = stock.Channel.from_transport_options + OPTIONS + tuple(compat.RESTORE_DEFAULTS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.consumer: Consumer | None = None
        self.arriving: Any = None
        self.no_ack_queues: set[str] = set()
        self.refused = False
        super().__init__(*args, **kwargs)
        register_after_fork(self, _after_fork)

    @property
    def keys(self) -> Keys:
        """The names on the server."""
        return Keys.create(
            prefix=self.global_keyprefix,
            unacked=self.unacked_key,
            index=self.unacked_index_key,
            mutex=self.unacked_mutex_key,
        )

    @property
    def address(self) -> Hashable:
        """What tells one server from another."""
        client = self.connection.client
        return client.transport_cls, client.hostname, client.port, client.virtual_host

    @property
    def broker(self) -> Hashable:
        """What tells one broker, and one set of keys on it, from another.

        Several URLs are one broker: a server and those that take its place. So what runs through a switch is
        acknowledged at the next one, which a server that knows nothing of it takes for nothing.
        """
        return tuple(self.connection.client.alt) or self.address, self.keys

    @cached_property
    def holdings(self) -> Holdings:
        """What this process holds, of this broker; asked for several times with each message."""
        return holdings_of(self.broker)

    def poll(self, hub: Any) -> bool:
        """In each turn of the loop; False where this channel is to be served as stock kombu does."""
        if self.consumer is None:
            if self.refused or not self.active_queues:
                return False
            self._start(hub)
        if self.consumer is None:
            return False
        self.consumer.tick()
        return True

    def _start(self, hub: Any) -> None:
        if not self.ack_emulation:
            self.refused = True
            return
        holdings, keys = self.holdings, self.keys
        if holdings.lines_before:
            compat.let_go_of_forgotten()
        timeout_s = max(self.socket_timeout or 0, MIN_TIMEOUT_S)
        try:
            self.consumer = Consumer(
                self,
                hub,
                connection=compat.connection_of(self.async_pool),
                keys=keys,
                holdings=holdings,
                options=Options(
                    take_messages=min(self.take_messages, TAKE_MAX),
                    take_bytes=self.take_bytes,
                    takes_in_flight=self.takes_in_flight,
                    lease_s=self.lease_s,
                    pushes=self.push_wake_ups,
                    timeout_s=timeout_s,
                ),
            )
        except exceptions.ResponseError as error:
            self.refused = True
            logger.warning("the broker does not let us run scripts (%s): kombu's own transport it is, slower", error)
            return
        if holdings.caretaker is not None and holdings.caretaker.address != self.address:
            holdings.caretaker.end()
            holdings.caretaker = None
        if holdings.caretaker is None:
            client = redis.Redis(connection_pool=self._get_pool())
            holdings.caretaker = Caretaker(client, address=self.address, keys=keys, lease_s=self.lease_s)
        holdings.publisher = self.consumer
        holdings.caretaker.serve(self.consumer.line, self, instead_of=holdings.lines_before)
        holdings.lines_before = []

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """As kombu's."""
        (self.no_ack_queues.add if no_ack else self.no_ack_queues.discard)(queue)
        if self.consumer is not None:
            self.consumer.draining = False
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        result = super()._basic_cancel(consumer_tag)
        consumer = self.consumer
        if consumer is not None and not consumer.lost and not consumer.draining and not self.active_queues:
            consumer.drain()
        return result

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **kwargs: Any) -> Any:
        publisher = self.holdings.publisher if "_publish_batch" not in kwargs else None
        if publisher is not None:
            payload = dumps(message)
            topics = compat.topics_of(self, exchange, routing_key)
            if all(publisher.publish(topic, payload) for topic in topics):
                return None
        return super()._put_fanout(exchange, message, routing_key, **kwargs)

    def close(self) -> None:
        """As kombu's: gives back what is not settled, once it is known."""
        consumer = self.consumer
        if consumer is not None and not self.closed:
            holdings = self.holdings
            if not consumer.lost:
                consumer.probe()
            try:
                for tag in list(self._consumers):
                    self.basic_cancel(tag)
            except exceptions.ConnectionError as error:
                logger.warning("the connection to the broker was lost while it was closed: %s", error)
            if self._qos is not None:
                self._qos.restore_unacked_once()
            if holdings.publisher is consumer:
                holdings.publisher = None
            caretaker = holdings.caretaker
            consumer.close(lambda: None if caretaker is None else caretaker.leave(consumer.line, self))
            self.consumer = None
        super().close()


class SentinelChannel(Channel, stock.SentinelChannel):
    """For `sentinel://`."""

    from_transport_options = stock.SentinelChannel.from_transport_options + OPTIONS + tuple(compat.RESTORE_DEFAULTS)


def require_master(client: Any) -> None:
    """A replica would take no writes, however often we connect to it: the next URL may be better.

    Raises:
        redis.exceptions.ConnectionError: it is one.
    """
    try:
        role = client.execute_command("ROLE")
    except exceptions.ResponseError:  # not for this user, or unknown to this server: the first write will tell
        return
    if role and role[0] in {b"slave", "slave"}:
        raise exceptions.ConnectionError("the server is a replica, and takes no writes")


def _after_fork(channel: Any) -> None:
    """In a child of prefork's: what the parent holds is the parent's."""
    channel.consumer = None
    vars(channel).pop("holdings", None)
    forget_all()
