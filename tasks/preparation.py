"""The entry point of image work: fetches, decodes and embeds images."""

from typing import Any

from celery import Task

from legit_embedding.contract import PREPARE_IMAGES, TaskResult
from tasks.common import embed, register


@register(PREPARE_IMAGES, kind="images")
async def prepare_images(self: Task, /, *args: Any, **kwargs: Any) -> TaskResult:
    """Embeds a task's images; one entry an item on the task's `reply_to` stream; returns the task's summary."""
    return await embed(self, args, kwargs)
