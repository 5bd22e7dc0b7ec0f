"""The names of the keys: kombu's, and ours beside them. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Full names, kombu's `global_keyprefix` included."""

    prefix: str
    unacked: str
    index: str
    mutex: str

    @classmethod
    def create(cls, *, prefix: str, unacked: str, index: str, mutex: str) -> "Keys":
        """From kombu's options, which hold the names without the prefix."""
        return cls(prefix=prefix, unacked=prefix + unacked, index=prefix + index, mutex=prefix + mutex)

    @property
    def leases(self) -> str:
        """A sorted set: a line to the broker, by when it is taken for dead."""
        return f"{self.unacked}_leases"

    @property
    def owners(self) -> str:
        """What the names of all lines' hashes begin with."""
        return f"{self.unacked}_lease."

    @property
    def deliveries(self) -> str:
        """A hash: how often a message was given back before, by the SHA-1 of its text."""
        return f"{self.unacked}_deliveries"

    def owner(self, line: str) -> str:
        """A hash: what a line has taken."""
        return self.owners + line

    def of(self, key: str) -> str:
        """The full name of a list."""
        return self.prefix + key
