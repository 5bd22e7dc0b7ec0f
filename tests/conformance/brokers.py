"""The brokers that the suite runs on: a Valkey of its own, and a RabbitMQ where one is at hand."""

import json
import os

import pytest
import redis

from legit_embedding.testing.rabbit import RabbitServer
from legit_embedding.testing.server import EmbeddedServer

URL_VARIABLE = "LEGIT_TEST_AMQP_URL"


class ValkeyBroker:
    """What a queue holds is read from kombu's own keys."""

    name = "valkey"
    transport = "kombu"
    redis = True
    durable = False

    def __init__(self):
        self._server = EmbeddedServer()

    @property
    def url(self):
        return self._server.url()

    def start(self):
        self._server.start()

    def stop(self):
        self._server.stop()

    def restart(self):
        """A death, and a start: everything that it held is gone."""
        self._server.restart()

    def counts(self, queue):
        """How many messages wait for a worker, and how many workers hold."""
        with self._client() as client:
            ready, values = client.llen(queue), client.hvals("unacked")
        held = [json.loads(value) for value in values]
        return ready, sum(routing_key == queue for _message, _exchange, routing_key in held)

    def held_longer_than(self, seconds):
        """Whether all that workers hold was taken longer ago than that."""
        with self._client() as client:
            seconds_now, _ = client.time()
            taken = client.zrange("unacked_index", 0, -1, withscores=True)
        return all(score < seconds_now - seconds for _tag, score in taken)

    def _client(self):
        return redis.Redis.from_url(self.url)


class PipelinedBroker(ValkeyBroker):
    """The same server, by way of our own transport."""

    name = "pipelined"
    transport = "legit"


class RabbitBroker:
    """Debian's server as a process of ours, or the one that LEGIT_TEST_AMQP_URL names."""

    name = "rabbitmq"
    transport = "kombu"
    redis = False
    durable = True

    def __init__(self):
        self._given = os.environ.get(URL_VARIABLE)
        self._server = RabbitServer()

    @classmethod
    def missing(cls):
        """Why there is none here; None where there is one."""
        if os.environ.get(URL_VARIABLE):
            return None
        reason = RabbitServer.missing()
        return reason and f"{reason}, or name one in {URL_VARIABLE}"

    @property
    def url(self):
        return self._given or self._server.url

    def start(self):
        if not self._given:
            self._server.start()

    def stop(self):
        self._server.stop()

    def restart(self):
        """A stop in good order, and a start: it keeps queues and messages, which are durable as Celery makes them."""
        self._server.restart()

    def counts(self, queue):
        """How many messages wait for a worker, and how many workers hold."""
        if self._given:
            pytest.skip(f"the broker that {URL_VARIABLE} names does not tell us what is unacknowledged")
        return self._server.counts(queue)


class ReadAheadBroker(RabbitBroker):
    """The same server, by way of our own transport."""

    name = "read_ahead"
    transport = "legit"


BROKERS = {broker.name: broker for broker in (ValkeyBroker, PipelinedBroker, RabbitBroker, ReadAheadBroker)}
