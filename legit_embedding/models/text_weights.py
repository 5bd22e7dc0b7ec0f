"""The transformer of a text model: where its files are, and loading it without a single made-up weight."""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import torch
import transformers
from transformers.utils import logging as transformers_logging

from legit_embedding.errors import ConfigurationError, ModelUnavailableError
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.hub import Repository, Snapshot
from legit_embedding.models.pooling import WEIGHT_FILES, head_files
from legit_embedding.models.sentence_files import SentenceFiles
from legit_embedding.models.tensors import seeded
from legit_embedding.models.weights import pickle_refused

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
CODE = "*.py"
SAFE, SAFE_SHARDS, SAFE_INDEX = "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_SHARDS, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"
UNUSED = ("pooler.",)
"""Weights that nothing reads: sentence vectors come from the last hidden state, which does not depend on them."""

NAMED = 3


@dataclass(frozen=True, slots=True)
class TextSource:
    """A model's folder, complete, and what its sentence-transformers files say."""

    folder: Path
    files: SentenceFiles

    @property
    def transformer(self) -> Path:
        """The folder of the transformer's own files."""
        return self.folder / self.files.transformer

    def weight_files(self) -> list[Path]:
        """Every file with weights that are loaded, the transformer's first."""
        return [*transformer_weights(self.transformer), *head_files(self.files.heads, self.folder)]

    def meaning_files(self) -> list[Path]:
        """The other files that decide about a vector: configuration and vocabulary."""
        return [path for path in (self.transformer / name for name in MEANING_FILES) if path.is_file()]


MEANING_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


def locate(spec: ModelSpec) -> TextSource:
    """The model's files, from a local folder or the hub.

    Raises:
        ConfigurationError: `weights` is missing, or the files ask for something that cannot be done here.
        ModelUnavailableError: there is no such folder, or the hub does not give them.
    """
    if spec.weights is None:
        raise ConfigurationError(
            f"models.{spec.key} has no weights: set weights to a local folder or an id on the hub; "
            "with untrained = true its configuration and tokenizer are taken from there"
        )
    folder = Path(spec.weights).expanduser()
    if folder.is_dir():
        return TextSource(folder, SentenceFiles.read(folder))
    if folder.is_file() or spec.weights.startswith((".", "/", "~")):
        raise ModelUnavailableError(f"models.{spec.key}.weights: there is no folder {folder.absolute()}")
    return _from_hub(spec, Repository.parse(spec.weights, spec.revision))


def _from_hub(spec: ModelSpec, repository: Repository) -> TextSource:
    """First what is small and says which weights there are, then those: repositories carry many that nobody reads."""
    snapshot = repository.fetch([*SMALL_FILES, *([CODE] if spec.trust_remote_code else [])])
    source = TextSource(snapshot.folder, SentenceFiles.read(snapshot.folder))
    if not spec.untrained:
        for place, wanted in ((source.files.transformer, (SAFE, SAFE_SHARDS)), *_head_places(source.files)):
            _fetch_weights(snapshot, place, wanted)
    return source


def _head_places(files: SentenceFiles) -> Iterator[tuple[str, Sequence[str]]]:
    for head in files.heads:
        if head.kind != "Normalize":
            yield head.folder, (SAFE,)


def _fetch_weights(snapshot: Snapshot, place: str, wanted: Sequence[str]) -> None:
    """As safetensors where the repository has them, else as pickles."""
    prefix = f"{place}/" if place else ""
    snapshot.repository.fetch([prefix + name for name in wanted])
    folder = snapshot.folder / place
    if not any(path for name in wanted for path in folder.glob(name)):
        snapshot.repository.fetch([prefix + name for name in (PICKLE, PICKLE_SHARDS)])


def transformer_weights(folder: Path) -> list[Path]:
    """The files that transformers would read, in its order of preference; none where there are none."""
    for single, index in ((SAFE, SAFE_INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            parts = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            return sorted({folder / part for part in parts})
    return []


def load_tokenizer(source: TextSource, spec: ModelSpec) -> Any:
    """The model's tokenizer, of which only the settings and the engine are used.

    Raises:
        ConfigurationError: the files do not make one.
    """
    with _quiet():
        try:
            return transformers.AutoTokenizer.from_pretrained(
                source.transformer, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
        except Exception as error:  # every tokenizer class fails in its own way
            raise ConfigurationError(
                f"no tokenizer can be made of the files in {source.transformer}: {error}"
            ) from error


def load_config(source: TextSource, spec: ModelSpec) -> Any:
    """The transformer's configuration.

    Raises:
        ConfigurationError: it is missing, broken, or needs code that it brings along.
    """
    if not (source.transformer / "config.json").is_file():
        raise ConfigurationError(f"there is no config.json in {source.transformer}")
    try:
        return transformers.AutoConfig.from_pretrained(
            source.transformer, local_files_only=True, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = "" if "trust_remote_code" not in str(error) else "; it needs trust_remote_code = true for this model"
        raise ConfigurationError(f"{source.transformer}/config.json cannot be used: {error}{hint}") from error


def load_transformer(source: TextSource, config: Any, spec: ModelSpec) -> torch.nn.Module:
    """The model in float32 on the CPU, every weight of it read; seeded random weights where `untrained` says so.

    Raises:
        ConfigurationError: weights are missing from the checkpoint, or it is a pickle that may not be loaded.
        ModelUnavailableError: there are no weights, or they are broken.
    """
    # In another dtype transformers would change torch's default dtype meanwhile: that of all threads, those that
    # compute for other models among them.
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": spec.trust_remote_code}
    auto = _auto_class(config)
    with _quiet(), seeded(spec.seed):
        if spec.untrained:
            model: torch.nn.Module = auto.from_config(config, **options)
            return model
        files = transformer_weights(source.transformer)
        if not files:
            raise ModelUnavailableError(
                f"there are no weights in {source.transformer}: {SAFE} was expected, or {WEIGHT_FILES[1]}"
            )
        try:
            model, report = auto.from_pretrained(
                source.transformer,
                config=config,
                local_files_only=True,
                weights_only=not spec.trust_pickle,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below by name
                **options,
                **_without_pooler(config, auto),
            )
        except UnpicklingError as error:
            raise pickle_refused(files[0]) from error
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            ImportError,
            safetensors.SafetensorError,
        ) as error:
            if "weights_only" in str(error) or "Weights only load" in str(error):
                raise pickle_refused(files[0]) from error
            raise ModelUnavailableError(f"the weights in {source.transformer} cannot be loaded: {error}") from error
    _refuse_made_up(report, source.transformer)
    return model


def _auto_class(config: Any) -> Any:
    """The whole model, or the encoder alone where there is a decoder, too."""
    encoders = transformers.AutoModelForTextEncoding
    if getattr(config, "is_encoder_decoder", False) and type(config) in encoders._model_mapping:  # noqa: SLF001
        return encoders
    return transformers.AutoModel


def _without_pooler(config: Any, auto: Any) -> dict[str, bool]:
    """`add_pooling_layer=False` for those models that know it: their checkpoints often lack that layer."""
    known = auto._model_mapping.get(type(config), None)  # noqa: SLF001  the public names load before they tell
    known = known[0] if isinstance(known, tuple) else known
    if known is None or "add_pooling_layer" not in inspect.signature(known.__init__).parameters:
        return {}
    return {"add_pooling_layer": False}


def _refuse_made_up(report: Any, folder: Path) -> None:
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(UNUSED))
    misfits = sorted(str(entry[0]) for entry in report["mismatched_keys"]) + [str(one) for one in report["error_msgs"]]
    if missing or misfits:
        shown = ", ".join([*missing, *misfits][:NAMED])
        raise ConfigurationError(
            f"the checkpoint in {folder} does not fit its config.json: {len(missing)} weights are missing, "
            f"{len(misfits)} have another shape ({shown}{', …' if len(missing) + len(misfits) > NAMED else ''})"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's progress bars and reports out of a worker's log; what matters of them is raised here."""
    verbosity, progress = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()
