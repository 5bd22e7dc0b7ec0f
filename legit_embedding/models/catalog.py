"""`models.toml`: which models there are, and which one a modality uses by default."""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from legit_embedding.errors import ConfigurationError, UnknownModelError

BUILT_IN = """
[defaults]
image = "clip"
text = "minilm"

[models.clip]
adapter = "open_clip"
name = "EVA02-B-16"
weights = "merged2b_s8b_b131k"

[models.minilm]
adapter = "transformers"
weights = "sentence-transformers/all-MiniLM-L6-v2"
"""
"""What is used where `LEGIT_MODELS` is unset."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One entry of `models.toml`.

    `key` is the table's name and what a task's `model` says; `name` is the architecture (open_clip). `device` and
    `dtype` may be `auto`. Batch limits and `idle_unload_s` None take the adapter's or the settings' own.
    `options` holds the keys that only the adapter knows.
    """

    key: str
    adapter: str
    name: str | None = None
    weights: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_items: int | None = None
    max_tokens: int | None = None
    idle_unload_s: float | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    trust_remote_code: bool = False
    trust_pickle: bool = False
    untrained: bool = False
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


_OWN_KEYS = frozenset(one.name for one in dataclasses.fields(ModelSpec)) - {"key", "options"}
_TYPES: Mapping[str, TypeAdapter[Any]] = {
    name: TypeAdapter(annotation) for name, annotation in typing.get_type_hints(ModelSpec).items()
}
_POSITIVE = ("max_items", "max_tokens", "idle_unload_s")


class Catalog:
    """The declared models, by key, and the default of each modality."""

    def __init__(self, specs: Mapping[str, ModelSpec], defaults: Mapping[str, str]) -> None:
        self.specs = MappingProxyType(dict(specs))
        self.defaults = MappingProxyType(dict(defaults))

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """The catalogue at `path`; None: the built-in one.

        Raises:
            ConfigurationError: no such file, no TOML, or an entry that cannot be used; names the file and the entry.
        """
        if path is None:
            return cls.parse(BUILT_IN)
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ConfigurationError) as error:
            raise ConfigurationError(f"LEGIT_MODELS={path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Self:
        """The catalogue that `text` (TOML) declares.

        Raises:
            ConfigurationError: it cannot be used; names the entry.
        """
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"not TOML: {error}") from error
        unknown = sorted(set(tables) - {"defaults", "models"})
        if unknown:
            raise ConfigurationError(f"unknown table [{unknown[0]}]; there are [defaults] and [models.<key>]")
        models, defaults = tables.get("models", {}), tables.get("defaults", {})
        if not isinstance(models, dict) or not all(isinstance(entry, dict) for entry in models.values()):
            raise ConfigurationError("models must be tables: [models.<key>]")
        if not isinstance(defaults, dict):
            raise ConfigurationError("defaults must be a table: [defaults]")
        specs = {key: _parse_spec(key, entry) for key, entry in models.items()}
        for modality, key in defaults.items():
            if not isinstance(key, str):
                raise ConfigurationError(f"defaults.{modality} must be the key of a model, not {key!r}")
            if key not in specs:
                raise ConfigurationError(f"defaults.{modality} names {key!r}, which is not declared as [models.{key}]")
        return cls(specs, defaults)

    def spec(self, key: str) -> ModelSpec:
        """The entry of that key.

        Raises:
            UnknownModelError: there is none; lists those that there are.
        """
        if key not in self.specs:
            known = ", ".join(sorted(self.specs)) or "none"
            raise UnknownModelError(f"the model {key!r} is not declared in models.toml; declared are: {known}")
        return self.specs[key]

    def default(self, modality: str) -> str:
        """The key of the modality's default model.

        Raises:
            UnknownModelError: it has none; says where to declare it.
        """
        if modality not in self.defaults:
            raise UnknownModelError(
                f"no default model for {modality}: name one in `model`, or in [defaults] of models.toml"
            )
        return self.defaults[modality]


def _parse_spec(key: str, entry: Mapping[str, Any]) -> ModelSpec:
    where = f"models.{key}"
    if "adapter" not in entry:
        raise ConfigurationError(
            f"{where}.adapter is missing; it says how the model is loaded (open_clip, transformers)"
        )
    own = {name: _checked(f"{where}.{name}", name, entry[name]) for name in entry if name in _OWN_KEYS}
    for name in _POSITIVE:
        if own.get(name) is not None and own[name] <= 0:
            raise ConfigurationError(f"{where}.{name} must be above 0, not {own[name]}")
    options = {name: value for name, value in entry.items() if name not in _OWN_KEYS}
    return ModelSpec(key=key, options=options, **own)


def _checked(where: str, name: str, value: Any) -> Any:
    try:
        return _TYPES[name].validate_python(value, strict=name != "idle_unload_s")
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {error.errors()[0]['msg']} (got {value!r})") from error
