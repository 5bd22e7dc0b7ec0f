"""The visual tower of an open_clip model, without the rest of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import resize_pos_embed

from legit_embedding.errors import ConfigurationError
from legit_embedding.models.tensors import seeded
from legit_embedding.models.weights import read_state

VISUAL = "visual."
STAND_IN_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
"""open_clip builds a visual tower only inside a whole model: this is the smallest text tower that it takes.

The real one may be large, or need a model from the hub, and no image ever passes through it.
"""

NAMED = 3
"""How many weights an error message names."""


def build(architecture: Mapping[str, Any], *, seed: int) -> torch.nn.Module:
    """A model whose `visual` is the tower of `architecture`, with random weights drawn from `seed`, on the CPU.

    Raises:
        ConfigurationError: open_clip or timm cannot build it.
    """
    try:
        # Whatever the weights are for: a timm trunk of its own would be fetched from the hub only to be overwritten.
        vision = {**architecture["vision_cfg"], "timm_model_pretrained": False}
        with seeded(seed):
            model: torch.nn.Module = open_clip.CustomTextCLIP(
                embed_dim=architecture["embed_dim"],
                vision_cfg=vision,
                text_cfg=STAND_IN_TEXT,
                quick_gelu=architecture.get("quick_gelu", False),
            )
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"open_clip cannot build this architecture: {type(error).__name__}: {error}"
        ) from error
    return model


def load(model: torch.nn.Module, checkpoint: Path, *, trust_pickle: bool) -> None:
    """Fills the visual tower of `model` from a checkpoint of the whole model; of safetensors nothing else is read.

    Raises:
        ConfigurationError: the checkpoint is of another architecture, or it is a pickle that may not be loaded.
        ModelUnavailableError: it cannot be read.
    """
    state = convert_state_dict(model, read_state(checkpoint, trust_pickle=trust_pickle, prefix=VISUAL))
    resize_pos_embed(state, model)
    visual = {name.removeprefix(VISUAL): value for name, value in state.items() if name.startswith(VISUAL)}
    tower = model.get_submodule("visual")
    try:
        missing, unknown = tower.load_state_dict(visual, strict=False)
    except RuntimeError as error:  # shapes differ
        raise ConfigurationError(f"the checkpoint {checkpoint} is of another architecture: {error}") from error
    if missing or unknown:
        raise ConfigurationError(
            f"the checkpoint {checkpoint} is of another architecture: {_named('lacks', missing)}, "
            f"{_named('has unknown', unknown)}"
        )


def output_of(features: Any) -> torch.Tensor:
    """The image embedding out of what a tower returns: some (CoCa's) return their tokens beside it."""
    embedding: torch.Tensor = features[0] if isinstance(features, tuple) else features
    return embedding


def _named(verb: str, names: list[str]) -> str:
    shown = f" ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})" if names else ""
    return f"it {verb} {len(names)} weights{shown}"
