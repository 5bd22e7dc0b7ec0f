"""Whether `reply_to` is followed: a switch for the roll-out, one for all workers, kept on the result server."""

import asyncio
import logging
from types import TracebackType
from typing import Literal, Protocol, Self

from legit_embedding.clock import Clock
from legit_embedding.publish.errors import ResultServerError
from legit_embedding.publish.outcomes import Refused, classify
from legit_embedding.publish.routing import OWN_PREFIX
from legit_embedding.publish.wire import RedisWire, Wire

logger = logging.getLogger(__name__)

KEY = f"{OWN_PREFIX}reply_to_routing"
POLL_S = 1.0
TIMEOUT_S = 2.0
"""A remote-control command waits for two of these at most: a poll under way and its own."""

Value = Literal["on", "off"]


class RoutingState(Protocol):
    """What the publisher asks."""

    @property
    def enabled(self) -> bool:
        """Whether `reply_to` is followed now."""
        ...

    async def ready(self) -> None:
        """Returns once `enabled` is known."""
        ...


class FixedRouting:
    """A `RoutingState` that never changes."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled

    async def ready(self) -> None:
        """Returns at once."""


class RoutingSwitch:
    """A `RoutingState` that follows the key `legit:reply_to_routing`; where that is absent, `default` is in force.

    It polls every second. Until the server has answered once, nothing is known: results wait, as they must while their
    server cannot be reached.
    """

    def __init__(self, *, default: Value, wire: Wire, clock: Clock) -> None:
        self._default: Value = default
        self._value: Value = default
        self._wire = wire
        self._clock = clock
        self._known = asyncio.Event()
        self._turn = asyncio.Lock()  # one command at a time: a poll must not bring back what a `set` has replaced
        self._poller: asyncio.Task[None] | None = None
        self._odd: object = None

    @classmethod
    def connect(cls, url: str, *, default: Value, clock: Clock) -> Self:
        """A switch that is kept on the server at `url`.

        Raises:
            ConfigurationError: the URL cannot be used.
        """
        return cls(default=default, wire=RedisWire(url=url, timeout_s=TIMEOUT_S), clock=clock)

    @property
    def value(self) -> Value:
        """`on` or `off`: what is in force."""
        return self._value

    @property
    def enabled(self) -> bool:
        """Whether `reply_to` is followed now."""
        return self._value == "on"

    async def ready(self) -> None:
        """Returns once the server has been asked successfully."""
        await self._known.wait()

    async def start(self) -> None:
        """Begins to follow the server; does not wait for it."""
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="legit-routing-switch")

    async def stop(self) -> None:
        """Ends the polling; a second call does nothing."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
            self._poller = None
        await self._wire.close()

    async def set(self, value: Value) -> Value:
        """Writes `value` to the server, for all workers and their restarts; what is then in force.

        Raises:
            ResultServerError: the server did not confirm it; this worker goes on as before.
        """
        async with self._turn:
            (reply,) = await self._wire.execute([("SET", KEY, value)])
            if isinstance(reply, Exception):
                self._wire.expire()  # a replica that was the primary goes on refusing; another may answer there now
                raise ResultServerError(f"{KEY} was not set to {value}: {reply}") from reply
            self._apply(value)
        return self._value

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def __repr__(self) -> str:
        return f"<RoutingSwitch {self._value}{'' if self._known.is_set() else ', not read yet'}>"

    async def _poll(self) -> None:
        while True:
            try:
                await self._read()
            except Exception:
                logger.exception("the routing switch could not be read; it is tried again")
            await self._clock.sleep(POLL_S)

    async def _read(self) -> None:
        async with self._turn:
            (reply,) = await self._wire.execute([("GET", KEY)])
            if not isinstance(reply, Exception):
                self._apply(self._understand(reply))
            elif isinstance(classify(reply, on_global_stream=False), Refused):
                self._apply(self._understand(str(reply)))  # it will not be told: results must not wait for ever
            # Any other trouble is the publisher's too, which waits it out and tells of it.

    def _understand(self, reply: object) -> Value:
        if reply is None:
            return self._default
        if reply == b"on":
            return "on"
        if reply == b"off":
            return "off"
        if reply != self._odd:
            self._odd = reply
            logger.warning("%s gave %r, neither on nor off; %s is in force", KEY, reply, self._default)
        return self._default

    def _apply(self, value: Value) -> None:
        if value != self._value:
            logger.warning("reply_to routing is now %s", value)
        self._value = value
        self._known.set()
