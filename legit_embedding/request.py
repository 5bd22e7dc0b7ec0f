"""A task message, as the worker holds it from receipt to ack: two ways in which ours differ from Celery's."""

from celery.worker.request import Request

from legit_embedding import runtime


class EmbeddingRequest(Request):
    """An expired task is not dropped in silence: its producer is told, by an `expired` entry for each item."""

    def maybe_expire(self) -> bool:
        """Lets an expired task through to its body, which writes the entries."""
        return False

    def acknowledge(self) -> None:
        """Acknowledges, and only then lets go of the files in shared memory that the task was about."""
        super().acknowledge()
        if self.acknowledged:
            runtime.acknowledged(self.id)
