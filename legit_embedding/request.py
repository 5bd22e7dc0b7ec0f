"""A task message, as the worker holds it from receipt to ack: two ways in which ours differ from Celery's."""

from legit_embedding import runtime
from legit_embedding.pool.request import DecodedRequest


class EmbeddingRequest(DecodedRequest):
    """An expired task is not dropped in silence: its producer is told, by an `expired` entry for each item."""

    def maybe_expire(self) -> bool:
        """Lets an expired task through to its body, which writes the entries."""
        return False

    def acknowledge(self) -> None:
        """Acknowledges, and only then lets go of the files in shared memory that the task was about."""
        was_settled = self.acknowledged
        super().acknowledge()
        if not was_settled:
            self._discard_files()

    def reject(self, requeue: bool = False) -> None:
        """Rejects; a task that does not go back to its queue lets go of its files as an acknowledged one does."""
        was_settled = self.acknowledged
        super().reject(requeue)
        if not was_settled and not requeue:
            self._discard_files()

    def _discard_files(self) -> None:
        """From the message, because a task that was revoked or terminated never came to tell of its files."""
        if self.task.acks_late:  # else the ack comes before the task has read them
            runtime.discard_files(self.task.kind, self.args, self.kwargs)
