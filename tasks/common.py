"""What the three tasks share: how they are registered, and the way from a Celery request to the pipeline and back."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from celery import Task
from celery.app.task import Context
from celery.exceptions import Reject

from legit_embedding import runtime
from legit_embedding.application import app
from legit_embedding.config import settings
from legit_embedding.contract import Names, TaskResult
from legit_embedding.errors import ShuttingDownError
from legit_embedding.values import Delivery, TaskKind

Body = Callable[..., Any]


def register(canonical: str, *, kind: TaskKind) -> Callable[[Body], Body]:
    """Registers an async task body under each name that the site has for the canonical one.

    The task carries its `kind`, for `embed` and for the request's ack.
    """

    def decorate(body: Body) -> Body:
        for name in Names.load(settings().contract).tasks[canonical]:
            app.task(name=name, bind=True, kind=kind, Request="legit_embedding.request:EmbeddingRequest")(body)
        return body

    return decorate


async def embed(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskResult:
    """Parse, embed, publish; returns once every entry is confirmed.

    Raises:
        WrongPoolError: not under `-P legit_async`.
        Reject: the worker is stopping; the task goes back to its queue.
    """
    pipeline = runtime.current().pipeline
    try:
        summary = await pipeline.run(args, kwargs, kind=task.kind, delivery=delivery_of(task.request))
    except ShuttingDownError as error:
        raise Reject(str(error), requeue=True) from error
    return TaskResult(summary)


def delivery_of(request: Context) -> Delivery:
    """What the broker told of this delivery.

    A quorum queue counts earlier deliveries in `x-delivery-count`; elsewhere only a mark of redelivery is known.
    """
    earlier = request.get("x-delivery-count")
    if not isinstance(earlier, int):
        earlier = int(bool((request.delivery_info or {}).get("redelivered")))
    return Delivery(task_id=str(request.id), attempt=earlier + 1, expires_at_s=_epoch_s(request.expires))


def _epoch_s(expires: object) -> float | None:
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if isinstance(expires, datetime):
        return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp()
    return None
