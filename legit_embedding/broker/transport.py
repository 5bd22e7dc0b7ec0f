"""kombu's Redis transport, without its waiting: the poller and the transport."""

from typing import Any

from kombu.transport import redis as stock
from redis import exceptions

from legit_embedding.broker import compat
from legit_embedding.broker.channel import Channel, SentinelChannel, require_master


class Poller(stock.MultiChannelPoller):
    """Serves each channel once a turn."""

    hub: Any = None

    def on_poll_init(self, poller: Any) -> None:
        """The caretaker restores, and does not keep the worker's start waiting."""
        self.poller = poller

    def on_poll_start(self) -> None:
        """Before the loop waits."""
        if self.hub is None:
            super().on_poll_start()
            return
        for channel in list(self._channels):
            if not channel.poll(self.hub) and channel.active_queues and channel.qos.can_consume():
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)
        compat.update_polling(self)

    def maybe_restore_messages(self) -> None:
        """Of channels that no caretaker looks after."""
        if any(channel.consumer is not None for channel in self._channels):
            return
        super().maybe_restore_messages()


class Transport(stock.Transport):
    """For `redis://` and `rediss://`."""

    Channel = Channel
    outlives_connections = True
    # A master that has become a replica: kombu would let the worker end.
    connection_errors = (*stock.Transport.connection_errors, exceptions.ReadOnlyError)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def establish_connection(self) -> Any:
        """As kombu's, but to a master.

        Raises:
            redis.exceptions.ConnectionError: the server is a replica.
        """
        connection = super().establish_connection()
        try:
            require_master(self._avail_channels[0].client)
        except exceptions.ConnectionError:
            self.close_connection(connection)
            raise
        return connection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """From now on the loop serves this transport's channels."""
        self.cycle.hub = loop
        super().register_with_event_loop(connection, loop)


class SentinelTransport(Transport):
    """For `sentinel://`."""

    default_port = stock.SentinelTransport.default_port
    Channel = SentinelChannel
