"""What an entry of `models.toml` and the model's own files say together: how to pool, where to cut. Pure."""

import logging
from typing import Any

from legit_embedding.errors import ConfigurationError
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.sentence_files import POOLING_MODES, Pooling, SentenceFiles

logger = logging.getLogger(__name__)

OPTIONS = ("max_seq_length", "pooling")
"""Keys of `models.toml` that only this adapter knows."""

LONGEST = 8192
"""The limit of a model that names none itself, in tokens."""

UNLIMITED = 1_000_000
"""Above this a tokenizer's limit is transformers' way to say that it has none."""

POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer"})
"""Families that count positions from behind the padding's id, and so have that many fewer than they say."""


def check_options(spec: ModelSpec) -> None:
    """Raises `ConfigurationError` for a key that nobody knows, or a value that cannot be used."""
    unknown = sorted(set(spec.options) - set(OPTIONS))
    if unknown:
        raise ConfigurationError(
            f"models.{spec.key}.{unknown[0]} is unknown; beside the common keys the transformers adapter knows "
            f"{', '.join(OPTIONS)}"
        )
    length = spec.options.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length <= 0):
        raise ConfigurationError(f"models.{spec.key}.max_seq_length must be a number of tokens, not {length!r}")


def pooling_of(spec: ModelSpec, files: SentenceFiles) -> Pooling:
    """`pooling` of `models.toml`, else the model's own, else a guess that is said aloud."""
    named = spec.options.get("pooling")
    if named is not None:
        if named not in POOLING_MODES:
            raise ConfigurationError(
                f"models.{spec.key}.pooling {named!r} is unknown; there are {', '.join(POOLING_MODES)}"
            )
        return Pooling((named,), files.pooling.include_prompt)
    if not files.declared:
        logger.warning(
            "model %s: %s has no modules.json, so its vectors are the mean of its tokens; "
            "set pooling for this model if it was trained otherwise",
            spec.key, spec.weights,
        )  # fmt: skip
    return files.pooling


def limit_of(spec: ModelSpec, files: SentenceFiles, tokenizer: Any, config: Any) -> int:
    """Tokens a text may have: `models.toml`, then the model's own files, then what its positions allow."""
    named = spec.options.get("max_seq_length") or files.max_seq_length
    if named is not None:
        return int(named)
    limits = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < UNLIMITED else []
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        after = config.model_type in POSITIONS_AFTER_PADDING
        limits.append(positions - (config.pad_token_id or 0) - 1 if after else positions)
    return min(limits, default=LONGEST)
