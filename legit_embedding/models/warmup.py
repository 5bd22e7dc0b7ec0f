"""One small batch through a model right after its load: the first task shall not pay for lazy initialisation."""

import io

import numpy as np
from PIL import Image

from legit_embedding.errors import EmbeddingError
from legit_embedding.models.base import EmbeddingModel
from legit_embedding.values import Options, Payload

SIDE = 64


def warm_up(model: EmbeddingModel) -> None:
    """Runs one made-up input through all three stages. On the loader's thread.

    A model that takes no input that can be made up (neither a text nor a picture) refuses it, and stays cold.

    Raises:
        Exception: whatever `forward` raises: a model that fails here would fail on every task.
    """
    options = Options()
    (prepared,) = model.prepare([_payload(model)], options)
    if not isinstance(prepared, EmbeddingError):
        model.finish(model.forward([prepared]), [options])


def _payload(model: EmbeddingModel) -> Payload:
    if "text" in model.accepts:
        return "warm up"
    if "bytes" in model.accepts:
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB").save(buffer, "PNG")
        return buffer.getvalue()
    return np.zeros((3, SIDE, SIDE), np.float32)
