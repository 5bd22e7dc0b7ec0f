"""From token vectors to one vector a text, as sentence-transformers' modules do it; in float32 throughout."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from legit_embedding.errors import ConfigurationError
from legit_embedding.models.sentence_files import Head, Pooling
from legit_embedding.models.weights import read_state

FEWEST = 1e-9
"""What is divided by where every token is masked out."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling, *, prompt_tokens: Tensor) -> Tensor:
    """One vector a text: shape (n, modes * dim), from `hidden` of shape (n, length, dim) and `mask` of (n, length).

    `prompt_tokens`, shape (n,), says how many of a text's first tokens are its prompt's. Padding may be on either side.
    """
    hidden = hidden.to(torch.float32)
    start = mask.argmax(dim=1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device)[None, :] - start  # counted from a text's first token
    kept = mask if pooling.include_prompt else mask * (place >= prompt_tokens[:, None])
    kept = kept.to(torch.float32)
    return torch.cat([_MODES[mode](hidden, kept, place) for mode in pooling.modes], dim=-1)


def _first(hidden: Tensor, kept: Tensor, _place: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), kept.argmax(dim=1)]


def _last(hidden: Tensor, kept: Tensor, place: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    last = torch.where(kept > 0, place, -1).argmax(dim=1)
    return hidden[rows, last] * kept[rows, last, None]


def _max(hidden: Tensor, kept: Tensor, _place: Tensor) -> Tensor:
    return hidden.masked_fill(kept[:, :, None] == 0, float("-inf")).amax(dim=1)


def _mean(hidden: Tensor, kept: Tensor, _place: Tensor) -> Tensor:
    return _sum(hidden, kept) / kept.sum(dim=1, keepdim=True).clamp(min=FEWEST)


def _mean_sqrt(hidden: Tensor, kept: Tensor, _place: Tensor) -> Tensor:
    return _sum(hidden, kept) / kept.sum(dim=1, keepdim=True).clamp(min=FEWEST).sqrt()


def _weighted_mean(hidden: Tensor, kept: Tensor, place: Tensor) -> Tensor:
    return _mean(hidden, kept * (place + 1), place)


def _sum(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden * weights[:, :, None]).sum(dim=1)


_MODES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


class Dense(nn.Module):
    """A linear layer with its activation, and with its input added to it where the model was trained so."""

    def __init__(self, config: Mapping[str, Any], *, where: str) -> None:
        super().__init__()
        inputs, outputs = int(config["in_features"]), int(config["out_features"])
        self.linear = nn.Linear(inputs, outputs, bias=bool(config.get("bias", True)))
        self.activation = activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), where)
        self.adds_input = bool(config.get("use_residual", False))
        if self.adds_input and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Shape (n, in_features) to (n, out_features)."""
        result: Tensor = self.activation(self.linear(vectors))
        if self.adds_input:
            result = result + (self.residual(vectors) if hasattr(self, "residual") else vectors)
        return result


class LayerNorm(nn.Module):
    """Layer normalisation of the pooled vector."""

    def __init__(self, config: Mapping[str, Any], *, where: str) -> None:
        super().__init__()
        if "dimension" not in config:
            raise ConfigurationError(f"{where}: dimension is missing")
        self.norm = nn.LayerNorm(int(config["dimension"]))

    def forward(self, vectors: Tensor) -> Tensor:
        """Shape (n, dimension) to the same."""
        result: Tensor = self.norm(vectors)
        return result


class Normalize(nn.Module):
    """Unit length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Shape (n, dim) to the same."""
        return functional.normalize(vectors, p=2, dim=-1)


def activation(name: str, where: str) -> nn.Module:
    """The activation of that name, `torch.nn.modules.activation.Tanh` for one.

    Raises:
        ConfigurationError: it is none of torch's own: others would be code that the model brings along.
    """
    found = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigurationError(f"{where}: the activation {name!r} is none of torch.nn's")
    return found()


def build_head(heads: Sequence[Head], folder: Path, *, untrained: bool, trust_pickle: bool) -> nn.Sequential:
    """The modules after the pooling, with their weights.

    Raises:
        ConfigurationError: weights and configuration do not belong together.
        ModelUnavailableError: weights are missing or broken.
    """
    return nn.Sequential(*(_build(head, folder / head.folder, untrained, trust_pickle) for head in heads))


def head_files(heads: Sequence[Head], folder: Path) -> list[Path]:
    """The files with the weights of those modules that have any."""
    places = [folder / head.folder for head in heads if head.kind != "Normalize"]
    return [weights_in(place) for place in places]


def weights_in(folder: Path) -> Path:
    """The file with a module's weights; the first of `WEIGHT_FILES` where there is none."""
    paths = [folder / name for name in WEIGHT_FILES]
    return next((path for path in paths if path.is_file()), paths[0])


def _build(head: Head, folder: Path, untrained: bool, trust_pickle: bool) -> nn.Module:
    if head.kind == "Normalize":
        return Normalize()
    where = str(folder / "config.json")
    try:
        module = Dense(head.config, where=where) if head.kind == "Dense" else LayerNorm(head.config, where=where)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{where} is no configuration of a {head.kind}: {error!r}") from error
    if not untrained:
        state = read_state(weights_in(folder), trust_pickle=trust_pickle)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigurationError(f"{weights_in(folder)} does not fit its config.json: {error}") from error
    return module
