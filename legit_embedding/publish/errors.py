"""What can go wrong between this worker and the server of the result streams."""

from legit_embedding.errors import LegitError


class ResultServerError(LegitError):
    """The result server cannot be reached, or refuses; the message says which, and never holds a password."""
