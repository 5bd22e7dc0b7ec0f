"""A consumer on kombu's own event loop, without a worker around it."""

import time
from contextlib import ExitStack, contextmanager

from kombu import Connection, Queue
from kombu.asynchronous import Hub

from legit_embedding.broker import install, uninstall

PATIENCE_S = 20


class Rig:
    """Consumes queues of `url`; what comes is in `bodies`, and acknowledged where `acks` says so."""

    def __init__(self, url, *, queues=("work",), prefetch=10, apply_global=False, acks=True, ssl=None, **options):
        self.bodies = []
        self.messages = []
        self._acks = acks
        self._queues = [Queue(name, name, routing_key=name) for name in queues]
        self._prefetch = prefetch, apply_global
        lease = {} if url.startswith("amqp") else {"lease_s": 5}
        self.connection = Connection(url, ssl=ssl, transport_options={**lease, **options})
        self.hub = None

    def open(self):
        self.hub = Hub()
        self.connection.ensure_connection(max_retries=20, interval_start=0.1, interval_max=0.5)
        self.connection.transport.register_with_event_loop(self.connection.connection, self.hub)
        self.channel = self.connection.default_channel
        self.channel.basic_qos(0, *self._prefetch)
        self.consumer = self.connection.Consumer(self._queues, channel=self.channel, on_message=self._on_message)
        self.consumer.consume()
        return self

    def reopen(self):
        """As a worker does when an error of the connection comes out of its loop."""
        self.connection.collect(socket_timeout=1)
        self.connection.close()
        self.hub.close()
        self.open()

    def close(self):
        self.connection.close()
        self.hub.close()

    def turn(self):
        """One turn of the loop, which a timer ends at the latest."""
        self.hub.call_later(0.02, lambda: None)
        self.hub.run_once()

    def turn_until(self, condition, *, reopen=False):
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not in time; {self.channel!r}, {len(self.bodies)} came"
            try:
                self.turn()
            except self.connection.connection_errors:
                if not reopen:
                    raise
                self.reopen()

    @property
    def pipelined(self):
        """Whether it is our own transport that consumes."""
        return getattr(self.channel, "consumer", None) is not None

    def _on_message(self, message):
        self.bodies.append(message.payload)
        self.messages.append(message)
        if self._acks:
            message.ack()


@contextmanager
def rig(url, **options):
    """One that is opened and closed, with our transport for all connections meanwhile."""
    install()
    with ExitStack() as stack:
        stack.callback(uninstall)
        made = Rig(url, **options)
        stack.callback(made.close)
        yield made.open()


def send(url, bodies, *, queue="work", **options):
    """By stock kombu, as any producer does."""
    stock = "pyamqp" if url.startswith("amqp") else "redis"
    with Connection(url, transport=f"kombu.transport.{stock}:Transport") as connection:
        producer = connection.Producer()
        declared = Queue(queue, queue, routing_key=queue)
        for body in bodies:
            producer.publish(body, exchange=declared.exchange, routing_key=queue, declare=[declared], **options)
