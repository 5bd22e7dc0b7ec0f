"""An asyncio pool for Celery: Celery's own tracer, unmodified, in one greenlet a task on one event loop.

It knows nothing of models, streams or our tasks; `docs/pool.md` shows how any app uses it.
"""

from legit_embedding.pool.register import register_pool

__all__ = ["register_pool"]
