"""A reporter that keeps what it was told."""


class NullReporter:
    """Reports to nobody; `causes` holds each report's cause, in order, repeated ones too."""

    def __init__(self) -> None:
        self.causes: list[str] = []
        self.errors: list[BaseException] = []

    def report(self, error: BaseException, *, cause: str, **context: str) -> None:  # noqa: ARG002  the Protocol's own
        """Keeps the report."""
        self.causes.append(cause)
        self.errors.append(error)
