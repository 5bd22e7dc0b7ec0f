"""Adapters by name: entry points of the group `legit_embedding.models`, our own two among them."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points

from legit_embedding.errors import ConfigurationError
from legit_embedding.models.base import Adapter

GROUP = "legit_embedding.models"


class Registry:
    """Finds adapters when they are asked for: an adapter nobody uses is never imported.

    `extra` adds adapters that no package declares, for tests.
    """

    def __init__(self, *, extra: Mapping[str, Callable[[], Adapter]] | None = None) -> None:
        self._extra = dict(extra or {})
        self._adapters: dict[str, Adapter] = {}

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name, made once.

        Raises:
            ConfigurationError: there is none, two packages claim the name, or importing it failed.
        """
        if name not in self._adapters:
            self._adapters[name] = self._make(name)
        return self._adapters[name]

    def names(self) -> list[str]:
        """Every adapter that is installed."""
        return sorted({*self._extra, *entry_points(group=GROUP).names})

    def _make(self, name: str) -> Adapter:
        if name in self._extra:
            return self._extra[name]()
        found = entry_points(group=GROUP, name=name)
        if not found:
            raise ConfigurationError(f"no adapter {name!r} is installed; there are: {', '.join(self.names())}")
        targets = {entry.value: entry for entry in found}
        if len(targets) > 1:
            raise ConfigurationError(
                f"the adapter {name!r} is claimed by several packages: {', '.join(sorted(targets))}"
            )
        return _load(next(iter(targets.values())))


def _load(entry: EntryPoint) -> Adapter:
    try:
        adapter: Adapter = entry.load()()
    except Exception as error:
        raise ConfigurationError(f"the adapter {entry.name!r} ({entry.value}) cannot be imported: {error}") from error
    return adapter
