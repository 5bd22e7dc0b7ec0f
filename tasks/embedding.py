"""The second hop of the old design: images that another process has already prepared in shared memory."""

from typing import Any

from celery import Task

from legit_embedding.contract import EMBED_IMAGES, TaskResult
from tasks.common import embed, register


@register(EMBED_IMAGES, kind="prepared_images")
async def embed_images(self: Task, /, *args: Any, **kwargs: Any) -> TaskResult:
    """Embeds prepared images; one entry an item on the task's `reply_to` stream; returns the task's summary."""
    return await embed(self, args, kwargs)
