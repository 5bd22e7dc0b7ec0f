"""One made-up input through all three stages, of whatever kind the model takes."""

import io

import numpy as np
import pytest
from PIL import Image

from legit_embedding.models.warmup import warm_up
from legit_embedding.testing.model import FakeModel


class Recording(FakeModel):
    def prepare(self, payloads, options):
        self.payloads = list(payloads)
        return super().prepare(payloads, options)


def test_a_text_model_is_warmed_up_by_a_text():
    model = Recording()
    warm_up(model)
    assert ([type(payload) for payload in model.payloads], model.batches) == ([str], [model.payloads])


def test_an_image_model_is_warmed_up_by_an_image_that_can_be_decoded():
    model = Recording(modality="image")
    warm_up(model)
    (payload,) = model.payloads
    assert Image.open(io.BytesIO(payload)).mode == "RGB"
    assert len(model.batches) == 1


def test_a_model_of_tensors_is_warmed_up_by_a_tensor():
    model = Recording(modality="image", accepts=["tensor"])
    warm_up(model)
    (payload,) = model.payloads
    assert (payload.dtype, payload.ndim, len(model.batches)) == (np.float32, 3, 1)


def test_a_model_that_refuses_what_was_made_up_stays_cold_and_is_usable():
    model = FakeModel(undecodable=["warm up"])
    warm_up(model)
    assert model.batches == []


def test_a_model_that_cannot_compute_says_so():
    model = FakeModel()
    model.fail = lambda _: RuntimeError("no kernel image")
    with pytest.raises(RuntimeError, match="no kernel image"):
        warm_up(model)
