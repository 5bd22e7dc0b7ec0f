"""A channel's messages and its quality of service: kombu's, told to the server by way of the channel's consumer."""

import logging
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis import exceptions

from legit_embedding.broker.bodies import OTHER, plain_json
from legit_embedding.broker.settling import BACK, FRONT, Return

logger = logging.getLogger(__name__)

DELIVERY_COUNT = "x-delivery-count"
"""The header of quorum queues: how often a message was given back before."""


class Message(virtual.Message):
    """As kombu's; one that was taken by a script has the tag that the script has made."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        super().__init__(payload, channel=channel, **kwargs)
        taken = getattr(channel, "arriving", None)
        if taken is None:
            return
        self.delivery_tag = taken.tag
        if taken.deliveries:
            self.headers[DELIVERY_COUNT] = taken.deliveries
            mark_redelivered(payload)

    def _decode(self) -> Any:
        found = plain_json(self)
        return super()._decode() if found is OTHER else found


def mark_redelivered(payload: Any) -> None:
    """As stock kombu does it."""
    for part in (payload.get("headers"), payload["properties"].get("delivery_info")):
        if part is not None:
            part["redelivered"] = True


class QoS(stock.QoS):
    """Counts what is held, as ever; tells the server by way of the channel's consumer."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message has been delivered; the take has recorded it already."""
        if delivery_tag in self.channel.holdings:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Tells the server, soon."""
        if not self._settle(delivery_tag):
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Without `requeue`, as an ack; else the message goes to where new ones are put, as in stock kombu."""
        channel = self.channel
        if delivery_tag not in channel.holdings:
            super().reject(delivery_tag, requeue=requeue)
        elif not requeue:
            self._settle(delivery_tag)
        elif channel.consumer is not None and not channel.consumer.lost:
            message = self._delivered.get(delivery_tag)
            channel.holdings.let_go(delivery_tag)
            channel.consumer.return_soon(
                Return(delivery_tag, side=BACK, counted=True, text=None if message is None else _text_of(message))
            )
            self._quick_ack(delivery_tag)
        else:
            self._quick_ack(delivery_tag)
            channel.holdings.drop(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Gives everything back that is not settled, in its order."""
        self._flush()
        channel = self.channel
        ours = {tag: message for tag, message in self._delivered.items() if tag in channel.holdings}
        for tag in ours:
            self._delivered.pop(tag, None)
        consumer = channel.consumer
        if consumer is not None and not consumer.lost:
            returns = [
                Return(tag, side=FRONT, counted=True, text=_text_of(message)) for tag, message in reversed(ours.items())
            ]
            for tag in ours:
                channel.holdings.let_go(tag)
            try:
                consumer.return_now(returns)
            except exceptions.ConnectionError as error:
                logger.warning("%d messages could not be given back; their lease ends: %s", len(ours), error)
        else:
            for tag, message in ours.items():
                channel.holdings.orphan(tag, message)
        if self._delivered:
            super().restore_unacked(client)

    def _settle(self, delivery_tag: str) -> bool:
        channel = self.channel
        if delivery_tag not in channel.holdings:
            return False
        self._quick_ack(delivery_tag)
        if channel.consumer is not None:
            channel.consumer.ack(delivery_tag)
        else:
            channel.holdings.ack(delivery_tag)
        return True


def _text_of(message: Any) -> str:
    """A message that somebody may have worked on, as stock kombu gives it back."""
    payload = message._raw  # noqa: SLF001  kombu keeps it for this
    mark_redelivered(payload)
    (payload.get("headers") or {}).pop(DELIVERY_COUNT, None)
    return str(dumps(payload))
