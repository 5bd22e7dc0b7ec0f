"""Text models: from a folder to vectors, prompts and limits, and everything that must not load."""

import json
import logging
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from legit_embedding.errors import (
    ConfigurationError,
    DeviceOutOfMemoryError,
    InvalidItemError,
    ModelUnavailableError,
    SourceTooLargeError,
)
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.text import TransformersAdapter
from legit_embedding.models.warmup import warm_up
from legit_embedding.testing.checkpoints import save_small_bert
from legit_embedding.values import BatchLimits, Options

OPTIONS = Options()
LIMIT, HIDDEN = 32, 32
PROMPTS = {"query": "find this: ", "document": ""}


def load(folder, **entry):
    entry.setdefault("dtype", "float32")
    spec = ModelSpec(key="bert", adapter="transformers", weights=str(folder), device="cpu", **entry)
    return TransformersAdapter().load(spec, InputLimits(max_pixels=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_bert(tmp_path_factory.mktemp("bert") / "model", prompts=PROMPTS, max_seq_length=LIMIT)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the checkpoint, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "model")


def vectors(model, texts, options=OPTIONS):
    prepared = model.prepare(texts, options)
    return np.stack(model.finish(model.forward(prepared), [options] * len(prepared)))


# -- what a model is and gives -----------------------------------------------------------------------------------------


def test_a_loaded_model_says_what_it_is(model):
    info = model.info
    assert (info.name, info.adapter, info.modality, info.dim) == ("bert", "transformers", "text", HIDDEN)
    assert (info.device, info.dtype, info.untrained) == ("cpu", "float32", False)
    assert (info.limits, model.max_tokens) == (BatchLimits(max_items=32, max_tokens=4096), LIMIT)
    assert repr(model) == "<TransformersModel bert on cpu in float32, dim 32>"
    warm_up(model)


def test_the_entrys_batch_limits_win(folder):
    assert load(folder, max_items=5, max_tokens=99).info.limits == BatchLimits(max_items=5, max_tokens=99)


def test_padding_does_not_matter_to_a_text(model):
    texts = ["a", "some more words", "x" * 20]
    alone = np.concatenate([vectors(model, [text]) for text in texts])
    np.testing.assert_allclose(vectors(model, texts), alone, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "lasttoken", "weightedmean"])
def test_padding_on_the_left_does_not_matter_either(tmp_path, pooling):
    """As decoders have it; a BERT with absolute positions is only comparable without padding, so one text at a time."""
    texts = ["a few words", "other"]
    right = load(save_small_bert(tmp_path / "right", pooling=pooling))
    left = load(save_small_bert(tmp_path / "left", pooling=pooling, padding_side="left"))
    for text in texts:
        np.testing.assert_allclose(vectors(left, [text]), vectors(right, [text]), atol=1e-6)


def test_bf16_is_close_to_float32_and_shares_its_fingerprint(model, folder):
    half = load(folder, dtype="bfloat16")
    texts = ["one", "two three"]
    assert (vectors(half, texts) * vectors(model, texts)).sum(axis=1).min() > 0.999
    assert half.fingerprint(OPTIONS) == model.fingerprint(OPTIONS)
    assert half.info.nbytes < 0.6 * model.info.nbytes  # its weights are half as large, its position numbers are not


def test_a_dense_layer_decides_the_dimension(tmp_path):
    model = load(save_small_bert(tmp_path / "dense", pooling=("cls", "mean"), dense=12, normalize=True))
    assert model.info.dim == 12
    assert vectors(model, ["words"]).shape == (1, 12)


def test_a_model_that_normalises_does_so_even_where_the_task_does_not_ask_for_it(tmp_path):
    plain, unit = (load(save_small_bert(tmp_path / str(n), normalize=bool(n))) for n in (0, 1))
    raw = Options(normalize=False)
    assert np.linalg.norm(vectors(unit, ["words"], raw)) == pytest.approx(1.0, abs=1e-6)
    assert np.linalg.norm(vectors(plain, ["words"], raw)) != pytest.approx(1.0, abs=0.1)


def test_a_cut_vector_is_the_head_of_the_whole_one(model):
    whole, cut = vectors(model, ["words"])[0], vectors(model, ["words"], Options(dimensions=8))[0]
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)


# -- pooling of models without files of their own ----------------------------------------------------------------------


def test_without_files_the_mean_is_taken_and_said_aloud(tmp_path, caplog, model):
    bare = save_small_bert(tmp_path / "bare", pooling=None)
    with caplog.at_level(logging.WARNING, "legit_embedding"):
        guessed = load(bare)
    assert "no modules.json" in caplog.text
    np.testing.assert_allclose(vectors(guessed, ["words"]), vectors(model, ["words"]), atol=1e-6)
    assert guessed.max_tokens == 64  # what the tokenizer and the positions allow


def test_the_entry_may_say_how_to_pool_and_where_to_cut(tmp_path, caplog):
    bare = save_small_bert(tmp_path / "bare", pooling=None)
    named = load(bare, options={"pooling": "cls", "max_seq_length": 10})
    declared = load(save_small_bert(tmp_path / "cls", pooling="cls", max_seq_length=10))
    np.testing.assert_array_equal(vectors(named, ["many words " * 9]), vectors(declared, ["many words " * 9]))
    assert not caplog.records


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_a_prompt_stands_before_the_text(model):
    np.testing.assert_array_equal(
        vectors(model, ["words"], Options(prompt="query")), vectors(model, ["find this: words"])
    )


def test_the_entrys_prompts_are_laid_over_the_models_own(folder):
    model = load(folder, prompts={"query": "other: ", "title": "title: "})
    for name, text in [("query", "other: words"), ("title", "title: words"), ("document", "words")]:
        np.testing.assert_array_equal(vectors(model, ["words"], Options(prompt=name)), vectors(model, [text]))


def test_the_models_default_prompt_is_used_where_none_is_named(tmp_path):
    model = load(save_small_bert(tmp_path / "m", prompts=PROMPTS, default_prompt="query"))
    by_name = vectors(model, ["words"], Options(prompt="query"))
    np.testing.assert_array_equal(vectors(model, ["words"]), by_name)
    assert model.fingerprint(OPTIONS) == model.fingerprint(Options(prompt="query"))


def test_an_unknown_prompt_is_an_error_of_each_item_and_lists_the_known_ones(model):
    options = Options(prompt="qeury")
    errors = model.prepare(["a", "b"], options)
    assert [type(error) for error in errors] == [InvalidItemError, InvalidItemError]
    assert "document, query" in str(errors[0])
    assert model.fingerprint(options)  # asked for before the items are looked at


def test_a_prompt_that_is_left_out_of_the_pooling_changes_the_vector_only_through_attention(tmp_path):
    """The mean over the text's own tokens and the closing one."""
    place = save_small_bert(tmp_path / "m", include_prompt=False, prompts=PROMPTS)
    model = load(place)
    (prepared,) = model.prepare(["words"], Options(prompt="query"))
    assert prepared.data.prompt == 1 + len("findthis:")
    reference = transformers.AutoModel.from_pretrained(place, dtype=torch.float32, add_pooling_layer=False)
    tokens = transformers.AutoTokenizer.from_pretrained(place)("find this: words", return_tensors="pt")
    with torch.inference_mode():
        hidden = reference(**tokens).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden[prepared.data.prompt :].mean(dim=0), dim=0).numpy()
    np.testing.assert_allclose(vectors(model, ["words"], Options(prompt="query"))[0], expected, atol=1e-6)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_long_text_is_cut_at_the_models_limit(model):
    (prepared,) = model.prepare(["x" * 100], OPTIONS)
    assert prepared.tokens == LIMIT
    assert prepared.nbytes <= model.prepared_nbytes
    np.testing.assert_array_equal(vectors(model, ["x" * 100]), vectors(model, ["x" * (LIMIT - 2)]))


def test_a_long_text_that_must_not_be_cut_is_refused_with_both_numbers(model):
    refused, taken = model.prepare(["x" * 100, "x"], Options(truncate=False))
    assert isinstance(refused, SourceTooLargeError)
    assert "102 tokens" in str(refused)
    assert "takes 32" in str(refused)
    assert taken.tokens == 3


def test_what_is_no_text_is_an_error_of_its_own(model):
    image, text = model.prepare([b"bytes", "text"], OPTIONS)
    assert isinstance(image, InvalidItemError)
    assert text.tokens == 6


def test_families_that_count_positions_from_behind_the_padding_have_fewer(tmp_path):
    place = save_small_bert(tmp_path / "m", pooling=None)
    config = transformers.RobertaConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    transformers.RobertaModel(config, add_pooling_layer=False).save_pretrained(place)
    model = load(place)
    assert model.max_tokens == 38
    assert vectors(model, ["x" * 100]).shape == (1, 32)


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_fingerprints_differ_with_whatever_makes_vectors_differ(model, folder, tmp_path):
    fingerprints = {
        model.fingerprint(OPTIONS),
        model.fingerprint(Options(prompt="query")),
        model.fingerprint(Options(normalize=False)),
        model.fingerprint(Options(dimensions=8)),
        load(folder, prompts={"query": "other: "}).fingerprint(Options(prompt="query")),
        load(folder, options={"pooling": "cls"}).fingerprint(OPTIONS),
        load(folder, options={"max_seq_length": 8}).fingerprint(OPTIONS),
        load(save_small_bert(tmp_path / "other", seed=1)).fingerprint(OPTIONS),
    }
    assert len(fingerprints) == 8


def test_what_changes_no_vector_changes_no_fingerprint(model, copied):
    assert model.fingerprint(Options(truncate=False, dimensions=HIDDEN, prompt="document")) == model.fingerprint(
        OPTIONS
    )
    assert load(copied, max_items=1).fingerprint(OPTIONS) == model.fingerprint(OPTIONS)


# -- untrained ---------------------------------------------------------------------------------------------------------


def test_untrained_weights_follow_from_the_seed_alone(copied):
    """Only the configuration and the tokenizer are taken from the folder."""
    (copied / "model.safetensors").unlink()
    first, again, other = (load(copied, untrained=True, seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(vectors(first, ["words"]), vectors(again, ["words"]))
    assert first.info.untrained
    assert first.fingerprint(OPTIONS) == again.fingerprint(OPTIONS) != other.fingerprint(OPTIONS)


def test_loading_leaves_the_process_as_it_was(folder):
    """Random numbers, torch's default dtype, the library's verbosity and progress bars."""
    logs = transformers.utils.logging
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    before = torch.get_default_dtype(), torch.get_num_threads(), logs.get_verbosity(), logs.is_progress_bar_enabled()
    load(folder, dtype="bfloat16")
    after = torch.get_default_dtype(), torch.get_num_threads(), logs.get_verbosity(), logs.is_progress_bar_enabled()
    assert after == before
    assert torch.equal(torch.rand(3), expected)


def test_loading_prints_nothing(folder, capfd):
    load(folder)
    assert capfd.readouterr() == ("", "")


# -- what must not load ------------------------------------------------------------------------------------------------


def test_an_entry_without_weights_says_what_to_set():
    spec = ModelSpec(key="bert", adapter="transformers")
    with pytest.raises(ConfigurationError, match=r"models\.bert has no weights"):
        TransformersAdapter().load(spec, InputLimits(max_pixels=1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"poling": "cls"}, "poling is unknown"),
        ({"pooling": "median"}, "median"),
        ({"max_seq_length": 0}, "max_seq_length"),
        ({"max_seq_length": "many"}, "max_seq_length"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(folder, options, named):
    with pytest.raises(ConfigurationError, match=named):
        load(folder, options=options)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelUnavailableError, match=str(tmp_path / "nowhere")):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "error", "named"),
    [
        ("config.json", ConfigurationError, r"no config\.json"),
        ("tokenizer.json", ConfigurationError, "tokenizer"),
        ("model.safetensors", ModelUnavailableError, r"model\.safetensors was expected"),
    ],
)
def test_a_missing_file_is_named(copied, file, error, named):
    (copied / file).unlink()
    with pytest.raises(error, match=named):
        load(copied)


def test_a_broken_checkpoint_is_no_random_one(copied):
    (copied / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelUnavailableError, match="cannot be loaded"):
        load(copied)


def spoil(folder, change):
    """Rewrites the checkpoint after `change` has had its way with the tensors."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_not_made_up(copied):
    spoil(copied, lambda state: state.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(ConfigurationError, match=r"1 weights are missing.*layer\.1\.output\.dense\.weight"):
        load(copied)


def test_weights_of_another_shape_are_refused(copied):
    spoil(copied, lambda state: state.update({"embeddings.LayerNorm.bias": torch.ones(7)}))
    with pytest.raises(ConfigurationError, match=r"1 have another shape \(embeddings\.LayerNorm\.bias\)"):
        load(copied)


def test_a_pooler_that_nobody_uses_may_be_there_or_not(copied, model):
    pooler = {"pooler.dense.weight": torch.ones(32, 32), "pooler.dense.bias": torch.ones(32)}
    spoil(copied, lambda state: state.update(pooler))
    np.testing.assert_array_equal(vectors(load(copied), ["words"]), vectors(model, ["words"]))


def test_a_pickled_checkpoint_of_tensors_gives_the_same_vectors(copied, model):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    np.testing.assert_array_equal(vectors(load(copied), ["words"]), vectors(model, ["words"]))


def test_a_pickle_with_more_than_tensors_names_the_setting(copied):
    torch.save({**load_file(copied / "model.safetensors"), "more": pairwise}, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="trust_pickle = true"):
        load(copied)


def test_code_that_a_model_brings_along_is_not_run_unless_it_is_trusted(copied):
    (copied / "modeling.py").write_text("raise SystemExit('ran')")
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="trust_remote_code = true"):
        load(copied)


# -- a device in trouble -----------------------------------------------------------------------------------------------


def test_running_out_of_memory_is_told_as_such(folder, monkeypatch):
    model = load(folder)

    def no_memory(**_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(model, "_transformer", no_memory)
    with pytest.raises(DeviceOutOfMemoryError):
        model.forward(model.prepare(["words"], OPTIONS))


def test_a_closed_model_computes_nothing_more(folder):
    model = load(folder)
    prepared = model.prepare(["words"], OPTIONS)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.forward(prepared)
