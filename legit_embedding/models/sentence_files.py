"""A text model's own sentence-transformers files: how it pools, what follows, its prompts and its limit. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from legit_embedding.errors import ConfigurationError

MODULES = "modules.json"
MODEL_CONFIG = "config_sentence_transformers.json"
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The older form of a pooling configuration, in the order in which several of them are joined."""

POOLING_MODES = tuple(POOLING_FLAGS.values())
HEADS = ("Dense", "LayerNorm", "Normalize")
WITHOUT_EFFECT = ("Dropout",)
"""Modules that do nothing outside training."""

EMBEDDING = "sentence_embedding"


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token vectors become one: several modes are joined. `include_prompt` false leaves the prompt's tokens out."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Head:
    """A module after the pooling: its kind (one of `HEADS`), the folder with its weights, its configuration."""

    kind: str
    folder: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SentenceFiles:
    """What the files say; `declared` is false where there are none and mean pooling is a guess.

    `transformer` is the folder of the transformer's own files, "" for the model's folder itself.
    """

    declared: bool = False
    transformer: str = ""
    max_seq_length: int | None = None
    do_lower_case: bool = False
    pooling: Pooling = field(default_factory=Pooling)
    heads: tuple[Head, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "SentenceFiles":
        """The files in `folder`.

        Raises:
            ConfigurationError: one of them is broken, or asks for something that this adapter does not do.
        """
        general = _json(folder / MODEL_CONFIG) or {}
        prompts = {name: text or "" for name, text in general.get("prompts", {}).items()}
        default = general.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise ConfigurationError(f"{folder / MODEL_CONFIG}: default_prompt_name {default!r} is none of its prompts")
        modules = _json(folder / MODULES)
        if modules is None:
            return cls(prompts=prompts, default_prompt=default)
        transformer, pooling, heads = _parse_modules(folder, modules)
        config = _transformer_config(folder / transformer)
        return cls(
            declared=True,
            transformer=transformer,
            max_seq_length=config.get("max_seq_length"),
            do_lower_case=bool(config.get("do_lower_case", False)),
            pooling=pooling,
            heads=heads,
            prompts=prompts,
            default_prompt=default,
        )


def _parse_modules(folder: Path, modules: Any) -> tuple[str, Pooling, tuple[Head, ...]]:
    """A transformer first, then a pooling, then any number of heads."""
    transformer: str | None = None
    pooling: Pooling | None = None
    heads: list[Head] = []
    for module in modules:
        kind, place = _kind(folder, module), _inside(folder, str(module.get("path", "")))
        config = folder / place / "config.json"
        if kind == "Transformer" and transformer is None:
            transformer = place
        elif kind == "Pooling" and transformer is not None and pooling is None:
            pooling = _parse_pooling(config, _json(config) or {})
        elif kind in HEADS and pooling is not None:
            heads.append(_parse_head(kind, place, config))
        elif kind not in WITHOUT_EFFECT:
            raise ConfigurationError(
                f"{folder / MODULES}: the module {module.get('type')!r} is not one that is known here, or not in this "
                f"place; there may be a Transformer, a Pooling, and then {', '.join(HEADS)}"
            )
    if transformer is None or pooling is None:
        raise ConfigurationError(f"{folder / MODULES} names no Transformer or no Pooling")
    return transformer, pooling, tuple(heads)


def _kind(folder: Path, module: Any) -> str:
    """The module's class, where it is one of sentence-transformers' own; else its whole name, which nobody knows."""
    reference = module.get("type") if isinstance(module, dict) else None
    if not isinstance(reference, str):
        raise ConfigurationError(f"{folder / MODULES}: an entry has no type")
    return reference.rpartition(".")[2] if reference.startswith("sentence_transformers.") else reference


def _parse_pooling(path: Path, config: Mapping[str, Any]) -> Pooling:
    named = config.get("pooling_mode")
    if named is None:
        modes = tuple(mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)) or ("mean",)
    else:
        modes = (named,) if isinstance(named, str) else tuple(named)
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown or not modes:
        raise ConfigurationError(f"{path}: pooling_mode {named!r} is unknown; there are {', '.join(POOLING_MODES)}")
    return Pooling(modes, bool(config.get("include_prompt", True)))


def _parse_head(kind: str, place: str, path: Path) -> Head:
    config = _json(path) or {}
    ends = [config.get("module_input_name", EMBEDDING), config.get("module_output_name")]
    if any(end not in {EMBEDDING, None} for end in ends):
        raise ConfigurationError(f"{path}: {kind} works on {ends[0]!r}; here it can only work on {EMBEDDING!r}")
    return Head(kind, place, config)


def _transformer_config(folder: Path) -> Mapping[str, Any]:
    for name in TRANSFORMER_CONFIGS:
        config: Mapping[str, Any] | None = _json(folder / name)
        if config:
            task = config.get("transformer_task", "feature-extraction")
            if task != "feature-extraction":
                raise ConfigurationError(f"{folder / name}: transformer_task {task!r} gives no token vectors to pool")
            return config
    return {}


def _inside(folder: Path, place: str) -> str:
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigurationError(f"{folder / MODULES}: the path {place!r} leads out of the model's folder")
    return place


def _json(path: Path) -> Any:
    """The file's content; None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
