"""Text work."""

from typing import Any

from celery import Task

from legit_embedding.contract import EMBED_TEXTS, TaskResult
from tasks.common import embed, register


@register(EMBED_TEXTS, kind="texts")
async def embed_texts(self: Task, /, *args: Any, **kwargs: Any) -> TaskResult:
    """Embeds a task's texts; one entry an item on the task's `reply_to` stream; returns the task's summary."""
    return await embed(self, args, kwargs)
