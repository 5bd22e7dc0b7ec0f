"""legit-embedding: one process that embeds images and text for Celery producers.

Importing this package makes `-P legit_async` known to Celery and nothing else: `app` is made when somebody asks for it,
so that a process that only imports the package keeps its own `celery.current_app`, and no model library is imported.
"""

from typing import TYPE_CHECKING, Any

from legit_embedding.pool.register import register_pool

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["__version__", "app"]
__version__ = "0.1.0"

app: "Celery"

register_pool()


def __getattr__(name: str) -> Any:
    if name in {"app", "celery"}:  # `celery -A legit_embedding` looks for either
        from legit_embedding.application import app  # noqa: PLC0415  the reason for this function

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
