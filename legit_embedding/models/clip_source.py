"""From an entry of `models.toml` to an open_clip architecture, its preprocessing and the file with its weights."""

import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from legit_embedding.errors import ConfigurationError, ModelUnavailableError
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.hub import SCHEME, Repository
from legit_embedding.models.weights import SAFETENSORS

logger = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
PICKLES = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin", "model.pth")

PREPROCESS_OPTIONS = {
    "image_mean": "mean",
    "image_std": "std",
    "image_interpolation": "interpolation",
    "image_resize_mode": "resize_mode",
}
"""Keys of `models.toml` that only this adapter knows, and what they overrule in the model's own preprocessing."""


@dataclass(frozen=True, slots=True)
class ClipSource:
    """What to build and what to load into it.

    `architecture` is open_clip's model configuration, `preprocess` holds fields of its `PreprocessCfg` without the
    size, which the built tower knows. `checkpoint` None means seeded random weights.
    """

    architecture: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    checkpoint: Path | None


def resolve(spec: ModelSpec) -> ClipSource:
    """What the entry means; downloads what has to be downloaded.

    Raises:
        ConfigurationError: the entry contradicts itself or names something that does not exist.
        ModelUnavailableError: the weights cannot be had.
    """
    overrides = _overrides(spec)
    if spec.untrained:
        if spec.weights is not None:
            raise ConfigurationError(f"models.{spec.key} has weights and untrained = true; keep one of the two")
        return ClipSource(_named_architecture(spec), merge_preprocess_dict(_defaults(), overrides), None)
    if spec.weights is None:
        raise ConfigurationError(
            f"models.{spec.key} has no weights: set weights to a pretrained tag, {SCHEME}<owner>/<name> or a local "
            "checkpoint, or untrained = true for random ones"
        )
    found = _locate(spec, spec.weights)
    return ClipSource(found.architecture, merge_preprocess_dict(found.preprocess, overrides), found.checkpoint)


def _locate(spec: ModelSpec, weights: str) -> ClipSource:
    if weights.startswith(SCHEME):
        return _from_hub(spec, Repository.parse(weights, spec.revision))
    if spec.name is not None and open_clip.is_pretrained_cfg(_canonical(spec.name), weights):
        return _from_tag(spec, weights)
    path = Path(weights).expanduser()
    if path.is_dir():
        return _from_folder(spec, path, _checkpoint_in(path))
    if path.is_file():
        return _from_folder(spec, path.parent, path)
    if os.sep in weights or path.suffix in {SAFETENSORS, ".bin", ".pt", ".pth"}:
        raise ModelUnavailableError(
            f"models.{spec.key}.weights: there is no file or folder {path.absolute()}; for a repository on the hub "
            f"write {SCHEME}{weights}"
        )
    raise _unknown_tag(spec, weights)


def _from_hub(spec: ModelSpec, repository: Repository) -> ClipSource:
    snapshot = repository.fetch([CONFIG])
    checkpoint = _fetch_first(snapshot.repository, (*PREFERRED, *PICKLES))
    return _from_folder(spec, snapshot.folder, checkpoint)


def _from_tag(spec: ModelSpec, tag: str) -> ClipSource:
    """A tag says where its weights are, and how its images are prepared."""
    name = _canonical(spec.name or "")
    config = open_clip.get_pretrained_cfg(name, tag)
    location = config.get("hf_hub", "")
    if not location:  # no tag of today; open_clip's own download by URL waits for ever for a server that falls silent
        raise ConfigurationError(
            f"models.{spec.key}.weights: {tag!r} is not on the hub; download {config.get('url')} yourself and set "
            "weights to the file"
        )
    repository, _, file = location.rpartition("/")
    wanted = (Path(file).with_suffix(SAFETENSORS).name, file) if file else (PREFERRED[0], PICKLES[0])
    checkpoint = _fetch_first(Repository(repository, spec.revision), wanted)
    architecture = _named_architecture(spec)
    if bool(config.get("quick_gelu")) != bool(architecture.get("quick_gelu")):
        logger.warning(
            "model %s: %s was trained with another activation (QuickGELU or not) than %s has; its vectors are those "
            "that open_clip gives for this pair, but %s is meant for it",
            spec.key, tag, name, f"{name}-quickgelu" if config.get("quick_gelu") else name.removesuffix("-quickgelu"),
        )  # fmt: skip
    return ClipSource(architecture, merge_preprocess_dict(_defaults(), config), checkpoint)


def _from_folder(spec: ModelSpec, folder: Path, checkpoint: Path) -> ClipSource:
    """What lies beside the weights was trained with them, so it goes before what `name` says."""
    path = folder / CONFIG
    if not path.is_file():
        if spec.name is None:
            raise ConfigurationError(f"models.{spec.key}.name is missing, and there is no {CONFIG} in {folder}")
        return ClipSource(_named_architecture(spec), _defaults(), checkpoint)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        architecture, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is no configuration of open_clip: {error!r}") from error
    if spec.name is not None:
        logger.info("model %s: %s says what to build, name = %r is not used", spec.key, path, spec.name)
    return ClipSource(architecture, merge_preprocess_dict(_defaults(), preprocess), checkpoint)


def _checkpoint_in(folder: Path) -> Path:
    names = (*PREFERRED, *PICKLES)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = [path for path in folder.iterdir() if path.suffix in {SAFETENSORS, ".bin", ".pt", ".pth"}]
    if len(others) == 1:
        return others[0]
    found = f"{len(others)} files that may be ones" if others else "none"
    raise ModelUnavailableError(f"a checkpoint was expected in {folder}, {found} found; looked for {', '.join(names)}")


def _fetch_first(repository: Repository, names: Sequence[str]) -> Path:
    """The first of these files that the repository has; none of the others is downloaded."""
    for name in names:
        path = repository.fetch([name]).folder / name
        if path.is_file():
            return path
    raise ModelUnavailableError(f"{repository} has none of {', '.join(names)}")


def _named_architecture(spec: ModelSpec) -> Mapping[str, Any]:
    if spec.name is None:
        raise ConfigurationError(f"models.{spec.key}.name is missing: the name of an open_clip architecture")
    name = _canonical(spec.name)
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        raise ConfigurationError(
            f"models.{spec.key}.name: open_clip has no architecture {spec.name!r}; "
            + (f"close to it are {', '.join(close)}" if close else "open_clip.list_models() lists them")
        )
    architecture: Mapping[str, Any] = open_clip.get_model_config(name)
    return architecture


def _unknown_tag(spec: ModelSpec, tag: str) -> ConfigurationError:
    _named_architecture(spec)
    tags = open_clip.list_pretrained_tags_by_model(_canonical(spec.name or ""))
    return ConfigurationError(
        f"models.{spec.key}.weights: {tag!r} is neither a file nor a pretrained tag of {spec.name}; "
        f"its tags are: {', '.join(tags) or 'none'}"
    )


def _overrides(spec: ModelSpec) -> Mapping[str, Any]:
    unknown = sorted(set(spec.options) - set(PREPROCESS_OPTIONS))
    if unknown:
        raise ConfigurationError(
            f"models.{spec.key}.{unknown[0]} is unknown; beside the common keys the open_clip adapter knows "
            f"{', '.join(PREPROCESS_OPTIONS)}"
        )
    return {PREPROCESS_OPTIONS[name]: value for name, value in spec.options.items()}


def _defaults() -> Mapping[str, Any]:
    return asdict(PreprocessCfg())


def _canonical(name: str) -> str:
    """open_clip writes a slash in an architecture's name as a hyphen."""
    return name.replace("/", "-")
