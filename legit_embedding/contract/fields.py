"""An object's fields, checked for their types: what JSON can hold, and how an error speaks of it."""

from collections.abc import Mapping
from typing import Any, TypeVar

from legit_embedding.errors import InvalidEnvelopeError
from legit_embedding.values import JsonObject

MAX_DEPTH = 100
"""How deep metadata may be nested: what json can read, it cannot always write from a deeper stack."""

T = TypeVar("T")


class Fields:
    """An object's fields by canonical name; `prefix` stands before their names in errors.

    Raises:
        InvalidEnvelopeError: from its methods; a field has another type, or holds what no entry can carry.
    """

    __slots__ = ("_given", "_names", "_prefix")

    def __init__(self, given: JsonObject, names: Mapping[str, str], *, prefix: str = "") -> None:
        self._given = given
        self._names = names
        self._prefix = prefix

    def text(self, name: str) -> str | None:
        """The string, None where it is absent, null or empty."""
        value = self._checked(name, str, "a string")
        if value and not is_unicode(value):
            raise InvalidEnvelopeError(f"{self._called(name)} holds half a surrogate pair, which no encoding can carry")
        return value or None

    def sequence(self, name: str) -> list[Any] | None:
        """The list, None where it is absent or null."""
        return self._checked(name, list, "a list")

    def object(self, name: str) -> JsonObject:
        """The object, empty where it is absent or null."""
        return self._checked(name, dict, "an object") or {}

    def metadata(self, name: str) -> JsonObject:
        """The object, which an entry can carry."""
        value = self.object(name)
        if is_deeper(value, MAX_DEPTH):
            raise InvalidEnvelopeError(f"{self._called(name)} is nested more than {MAX_DEPTH} levels deep")
        return value

    def flag(self, name: str) -> bool:
        """The boolean, True where it is absent or null."""
        value = self._checked(name, bool, "true or false")
        return True if value is None else value

    def positive(self, name: str) -> int | None:
        """The integer above 0, None where it is absent or null."""
        value = self._given.get(self._names[name])
        if value is None or (is_int(value) and value > 0):
            return value
        found = f"{value:.9g}" if is_int(value) and abs(value) < 2**63 else kind_of(value)
        raise InvalidEnvelopeError(f"{self._called(name)} must be a positive integer, not {found}")

    def _checked(self, name: str, kind: type[T], wanted: str) -> T | None:
        value = self._given.get(self._names[name])
        if value is None or isinstance(value, kind):
            return value
        raise InvalidEnvelopeError(f"{self._called(name)} must be {wanted}, not {kind_of(value)}")

    def _called(self, name: str) -> str:
        return f"`{self._prefix}{self._names[name]}`"


def text_of(given: JsonObject, name: str) -> str | None:
    """The string at a deployed name, None where there is none that can be used."""
    value = given.get(name)
    return value if isinstance(value, str) and value and is_unicode(value) else None


def is_int(value: Any) -> bool:
    """Whether JSON wrote it as an integer; Python counts booleans as such too."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_unicode(value: str) -> bool:
    """JSON can spell lone surrogates, which UTF-8 cannot hold; neither a stream's field nor a tokenizer takes them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested more than so many levels, without recursion of its own."""
    if not value:
        return False
    containers = [value]
    for _ in range(levels):
        children = (child for c in containers for child in (c.values() if isinstance(c, dict) else c))
        containers = [child for child in children if isinstance(child, dict | list)]
        if not containers:
            return False
    return True


def kind_of(value: Any) -> str:
    """How JSON calls the type of `value`."""
    for kind, name in _JSON_KINDS:
        if isinstance(value, kind):
            return name
    return type(value).__name__


_JSON_KINDS: tuple[tuple[type[Any] | tuple[type[Any], ...], str], ...] = (
    (type(None), "null"),
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a string"),
    ((list, tuple), "a list"),
    (Mapping, "an object"),
)
