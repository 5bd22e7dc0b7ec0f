"""What the rest of the worker relies on, of every model: the fake one that tests use, and the real ones."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from legit_embedding.errors import EmbeddingError, InvalidItemError
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.testing.model import FakeAdapter
from legit_embedding.values import Options, Prepared

LIMITS = InputLimits(max_pixels=1_000_000)
PLAIN = Options()
DIFFERENT = [Options(), Options(normalize=False), Options(dimensions=4)]


@dataclass(frozen=True)
class Case:
    """A loaded model, payloads that it takes, one whose fault it is, and one of a kind that it does not take."""

    adapter: Any
    spec: ModelSpec
    model: Any
    good: Sequence[Any]
    bad: Any
    alien: Any
    bad_options: Options = PLAIN


def picture(number):
    buffer = io.BytesIO()
    image = Image.linear_gradient("L").resize((60 + 10 * number, 80)).rotate(40 * number)
    Image.merge("RGB", (image, image.transpose(Image.Transpose.ROTATE_90).resize(image.size), image)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


TEXTS = ["a red bicycle", "rain", "the harbour in winter, seen from the market hill", "copper wire"]


def fake_text(_):
    spec = ModelSpec(key="fake", adapter="fake", options={"max_tokens_an_item": 50})
    return FakeAdapter(), spec, TEXTS, "word " * 60, b"bytes", Options(truncate=False)


def fake_image(_):
    spec = ModelSpec(key="fake", adapter="fake", options={"modality": "image", "undecodable": ["no image"]})
    return FakeAdapter(), spec, [picture(n) for n in range(4)], b"no image", "a text", PLAIN


def open_clip(folder):
    from legit_embedding.models.clip import OpenClipAdapter
    from legit_embedding.testing.checkpoints import save_small_eva02

    weights = save_small_eva02(folder / "eva02")
    spec = ModelSpec(key="clip", adapter="open_clip", weights=str(weights), device="cpu", dtype="float32")
    return OpenClipAdapter(), spec, [picture(n) for n in range(4)], b"no image", "a text", PLAIN


def transformers(_):
    from legit_embedding.models.text import TransformersAdapter
    from legit_embedding.testing.checkpoints import minilm_folder

    spec = ModelSpec(key="minilm", adapter="transformers", weights=str(minilm_folder()), device="cpu", dtype="float32")
    return TransformersAdapter(), spec, TEXTS, "word " * 600, b"bytes", Options(truncate=False)


@pytest.fixture(scope="module", params=[fake_text, fake_image, open_clip, transformers], ids=lambda make: make.__name__)
def case(request, tmp_path_factory):
    adapter, spec, good, bad, alien, bad_options = request.param(tmp_path_factory.mktemp("weights"))
    model = adapter.load(spec, LIMITS)
    yield Case(adapter, spec, model, good, bad, alien, bad_options)
    model.close()


def embed(model, payloads, options):
    """The outcome of each payload under its own options, computed in one batch."""
    prepared = [
        one for payload, wanted in zip(payloads, options, strict=True) for one in model.prepare([payload], wanted)
    ]
    return model.finish(model.forward(prepared), options)


def test_the_model_says_what_it_is(case):
    info = case.model.info
    assert (info.name, info.adapter) == (case.spec.key, case.spec.adapter)
    assert info.modality in {"image", "text"}
    assert info.device == "cpu"
    assert info.dim > 0
    assert info.nbytes > 0
    assert info.limits.max_items > 0
    assert info.limits.max_tokens is None or info.limits.max_tokens > 0
    assert case.model.accepts
    assert case.model.accepts <= {"bytes", "tensor", "text"}
    assert case.model.prepare_chunk >= 1


def test_the_spec_bounds_the_batch(case):
    bounded = case.adapter.load(ModelSpec(**{**spec_fields(case.spec), "max_items": 3, "max_tokens": 77}), LIMITS)
    assert bounded.info.limits.max_items == 3
    assert bounded.info.limits.max_tokens in {77, None}  # an image has one token: a bound of tokens means nothing
    bounded.close()


def spec_fields(spec):
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def test_prepare_gives_one_result_a_payload_in_order(case):
    together = case.model.prepare(case.good, PLAIN)
    alone = [result for payload in case.good for result in case.model.prepare([payload], PLAIN)]
    assert all(isinstance(one, Prepared) for one in together)
    vectors = [case.model.finish(case.model.forward(batch), [PLAIN] * len(case.good)) for batch in (together, alone)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_preparing_nothing_gives_nothing(case):
    assert case.model.prepare([], PLAIN) == []


def test_a_bad_payload_is_returned_in_its_place_and_never_raised(case):
    results = case.model.prepare([case.good[0], case.bad, case.good[1]], case.bad_options)
    assert [isinstance(one, EmbeddingError) for one in results] == [False, True, False]
    assert results[1].code in {"undecodable", "source_too_large", "invalid_item"}
    assert str(results[1])


def test_a_payload_of_another_kind_is_returned_in_its_place_and_never_raised(case):
    results = case.model.prepare([case.alien, case.good[0]], PLAIN)
    assert isinstance(results[0], InvalidItemError)
    assert isinstance(results[1], Prepared)


def test_no_prepared_input_is_larger_than_was_announced(case):
    for prepared in case.model.prepare(
        [*case.good, "word " * 600 if isinstance(case.good[0], str) else picture(30)], PLAIN
    ):
        assert 0 < prepared.nbytes <= case.model.prepared_nbytes
        assert prepared.tokens >= 1


def test_vectors_are_float32_of_unit_length_and_of_the_models_dimension(case):
    outcomes = embed(case.model, case.good, [PLAIN] * len(case.good))
    for vector in outcomes:
        assert (vector.dtype, vector.shape) == (np.float32, (case.model.info.dim,))
        assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1.0, abs=1e-5)


def test_different_payloads_have_different_vectors_and_equal_ones_equal_ones(case):
    payloads = [*case.good, case.good[0]]
    similarity = np.stack(embed(case.model, payloads, [PLAIN] * len(payloads)))
    similarity = similarity @ similarity.T
    assert similarity[0, -1] == pytest.approx(1.0, abs=1e-5)
    others = similarity[: len(case.good), : len(case.good)] - np.eye(len(case.good))
    assert others.max() < 0.9999


def test_a_vector_does_not_depend_on_who_shares_the_batch(case):
    together = embed(case.model, case.good, [PLAIN] * len(case.good))
    alone = [embed(case.model, [payload], [PLAIN])[0] for payload in case.good]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_items_of_one_batch_may_have_different_options(case):
    payload = case.good[0]
    normal, raw, cut = embed(case.model, [payload] * 3, DIFFERENT)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), normal, atol=1e-5)
    np.testing.assert_allclose(normal[:4] / np.linalg.norm(normal[:4]), cut, atol=1e-5)
    assert cut.shape == (4,)


def test_more_dimensions_than_there_are_is_the_items_own_error(case):
    outcomes = embed(case.model, case.good[:2], [Options(dimensions=case.model.info.dim + 1), PLAIN])
    assert isinstance(outcomes[0], InvalidItemError)
    assert isinstance(outcomes[1], np.ndarray)


def test_equal_options_have_equal_fingerprints_and_different_vectors_different_ones(case):
    assert case.model.fingerprint(Options()) == case.model.fingerprint(Options(dimensions=case.model.info.dim))
    assert case.model.fingerprint(Options()) == case.model.fingerprint(Options(truncate=False))
    assert len({case.model.fingerprint(options) for options in DIFFERENT}) == len(DIFFERENT)


def test_a_fingerprint_is_of_the_model_and_not_of_its_loading(case):
    again = case.adapter.load(case.spec, LIMITS)
    assert again.fingerprint(PLAIN) == case.model.fingerprint(PLAIN)
    again.close()


def test_many_threads_may_prepare_at_once(case):
    """As the worker does: the results are those of one thread."""
    payloads = list(case.good) * 5
    with ThreadPoolExecutor(4) as pool:
        prepared = [one for found in pool.map(lambda p: case.model.prepare([p], PLAIN), payloads) for one in found]
    vectors = case.model.finish(case.model.forward(prepared), [PLAIN] * len(payloads))
    expected = embed(case.model, case.good, [PLAIN] * len(case.good)) * 5
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
