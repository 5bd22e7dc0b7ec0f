"""open_clip models: from models.toml to vectors, and everything that must not load."""

import io
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from legit_embedding.errors import (
    ConfigurationError,
    DeviceOutOfMemoryError,
    InvalidItemError,
    InvalidVectorError,
    ModelUnavailableError,
    SourceTooLargeError,
    UndecodableError,
)
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.clip import OpenClipAdapter
from legit_embedding.models.clip_source import resolve
from legit_embedding.models.hub import Repository, Snapshot
from legit_embedding.models.warmup import warm_up
from legit_embedding.testing.checkpoints import SMALL_EVA02, save_open_clip, save_small_eva02
from legit_embedding.values import Options

LIMITS = InputLimits(max_pixels=1_000_000)
SIDE = 32
VISION = {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1}
VIT = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
COCA = {
    "embed_dim": 24,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}
OPTIONS = Options()


def load(limits=LIMITS, **entry):
    entry.setdefault("dtype", "float32")
    return OpenClipAdapter().load(ModelSpec(key="clip", adapter="open_clip", device="cpu", **entry), limits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small ViT in open_clip's own layout."""
    return save_open_clip(tmp_path_factory.mktemp("vit") / "model", VIT)


@pytest.fixture(scope="module")
def model(folder):
    return load(weights=str(folder))


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the checkpoint, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "model")


def picture(width=50, height=40, kind="PNG"):
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def vectors(model, payloads, options=OPTIONS):
    prepared = model.prepare(payloads, options)
    return model.finish(model.forward(prepared), [options] * len(prepared))


# -- what a model is and gives -----------------------------------------------------------------------------------------


def test_a_folder_in_open_clips_layout_needs_no_name(model):
    info = model.info
    assert (info.name, info.adapter, info.modality, info.dim) == ("clip", "open_clip", "image", 24)
    assert (info.device, info.dtype, info.untrained) == ("cpu", "float32", False)
    assert repr(model) == "<OpenClipModel clip on cpu in float32, dim 24>"


def test_only_the_visual_tower_is_in_memory(model, folder):
    state = load_file(folder / "open_clip_model.safetensors")
    visual = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("visual."))
    assert model.info.nbytes == visual < sum(tensor.nbytes for tensor in state.values())


def test_images_become_vectors_of_unit_length(model):
    found = vectors(model, [picture(), picture(90, 33, "JPEG")])
    assert [vector.shape for vector in found] == [(24,), (24,)]
    assert [vector.dtype for vector in found] == [np.float32, np.float32]
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-6)


def test_the_batch_does_not_matter_to_an_image(model):
    pictures = [picture(), picture(30, 80), picture(64, 64)]
    together = vectors(model, pictures)
    for one, alone in zip(together, (vectors(model, [data])[0] for data in pictures), strict=True):
        np.testing.assert_allclose(one, alone, atol=1e-6)


def test_a_model_of_the_eva02_family_passes_its_warm_up(tmp_path):
    model = load(weights=str(save_small_eva02(tmp_path / "eva")), dtype="bfloat16")
    warm_up(model)
    assert (model.info.dim, model.info.dtype) == (SMALL_EVA02["embed_dim"], "bfloat16")


def test_a_model_that_returns_tokens_beside_its_embedding_gives_the_embedding(tmp_path):
    model = load(weights=str(save_open_clip(tmp_path / "coca", COCA)))
    assert vectors(model, [picture()])[0].shape == (24,)


def test_bf16_is_close_to_float32_and_shares_its_fingerprint(model, folder):
    half = load(weights=str(folder), dtype="bfloat16")
    data = picture()
    assert float(vectors(half, [data])[0] @ vectors(model, [data])[0]) > 0.999
    assert half.fingerprint(OPTIONS) == model.fingerprint(OPTIONS)
    assert half.info.nbytes == model.info.nbytes / 2


def test_batches_are_small_on_a_cpu_unless_the_entry_says_otherwise(model, folder):
    assert model.info.limits.max_items == 16
    assert load(weights=str(folder), max_items=3).info.limits.max_items == 3


# -- preparing ---------------------------------------------------------------------------------------------------------


def test_a_bad_image_costs_only_its_own_vector(model):
    whole = picture()
    found = model.prepare([whole, b"no image", picture(3000, 400), whole[:200], "a text", whole], OPTIONS)
    kinds = [type(one).__name__ for one in found]
    assert kinds == [
        "Prepared", "UndecodableError", "SourceTooLargeError", "UndecodableError", "InvalidItemError", "Prepared",
    ]  # fmt: skip
    assert isinstance(found[1], UndecodableError)
    assert isinstance(found[2], SourceTooLargeError)
    assert "LEGIT_MAX_PIXELS (1,000,000)" in str(found[2])


def test_a_prepared_image_is_as_small_as_its_pixels(model):
    (prepared,) = model.prepare([picture(900, 900)], OPTIONS)
    assert prepared.nbytes == 3 * SIDE * SIDE <= model.prepared_nbytes
    assert prepared.tokens == 1


def test_a_tensor_of_pixels_gives_what_the_image_gives(model):
    (prepared,) = model.prepare([picture()], OPTIONS)
    (tensor,) = model.prepare([prepared.data.copy()], OPTIONS)
    assert torch.equal(model.inputs([prepared]), model.inputs([tensor]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_tensor_of_floats_is_taken_as_it_is(model, dtype):
    """Read-only, as shared memory gives it."""
    values = np.random.default_rng(3).normal(size=(3, SIDE, SIDE)).astype(dtype)
    values.flags.writeable = False
    (prepared,) = model.prepare([values], OPTIONS)
    assert prepared.nbytes == values.nbytes <= model.prepared_nbytes
    np.testing.assert_array_equal(model.inputs([prepared])[0].numpy(), values.astype(np.float32))


def test_images_and_tensors_of_every_dtype_share_a_batch_in_their_order(model):
    (prepared,) = model.prepare([picture()], OPTIONS)
    normal = model.inputs([prepared])[0].numpy()
    payloads = [normal, picture(), normal.astype(np.float16), prepared.data, normal]
    mixed = model.inputs(model.prepare(payloads, OPTIONS))
    alone = torch.cat([model.inputs(model.prepare([payload], OPTIONS)) for payload in payloads])
    assert torch.equal(mixed, alone)


@pytest.mark.parametrize("shape", [(3, SIDE, SIDE + 1), (1, SIDE, SIDE), (SIDE, SIDE, 3), (3, SIDE)])
def test_a_tensor_of_another_shape_is_refused(model, shape):
    (error,) = model.prepare([np.zeros(shape, np.float32)], OPTIONS)
    assert isinstance(error, InvalidItemError)
    assert "[3, 32, 32]" in str(error)


def test_a_tensor_of_another_dtype_is_refused(model):
    (error,) = model.prepare([np.zeros((3, SIDE, SIDE), np.float64)], OPTIONS)
    assert isinstance(error, InvalidItemError)


def test_a_tensor_with_nan_in_it_gives_an_error_and_its_neighbour_a_vector(model):
    broken = np.full((3, SIDE, SIDE), np.nan, np.float32)
    first, second = vectors(model, [broken, picture()])
    assert isinstance(first, InvalidVectorError)
    assert np.isfinite(second).all()


def test_an_image_model_has_no_prompts(model):
    (error,) = model.prepare([picture()], Options(prompt="query"))
    assert isinstance(error, InvalidItemError)


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_fingerprints_differ_with_whatever_makes_vectors_differ(model, folder, tmp_path):
    other_seed = load(weights=str(save_open_clip(tmp_path / "other", VIT, seed=1)))
    other_mean = load(weights=str(folder), options={"image_mean": [0.5, 0.5, 0.5]})
    fingerprints = {
        model.fingerprint(OPTIONS),
        model.fingerprint(Options(normalize=False)),
        model.fingerprint(Options(dimensions=8)),
        other_seed.fingerprint(OPTIONS),
        other_mean.fingerprint(OPTIONS),
    }
    assert len(fingerprints) == 5


def test_a_cut_to_the_whole_length_is_none(model):
    assert model.fingerprint(Options(dimensions=24)) == model.fingerprint(OPTIONS)


def test_the_same_weights_have_one_fingerprint_wherever_they_lie(model, copied):
    assert load(weights=str(copied)).fingerprint(OPTIONS) == model.fingerprint(OPTIONS)


# -- untrained ---------------------------------------------------------------------------------------------------------


def test_untrained_weights_follow_from_the_seed_alone():
    first, again, other = (load(name="ViT-S-32-alt", untrained=True, seed=seed) for seed in (7, 7, 8))
    data = [picture()]
    np.testing.assert_array_equal(vectors(first, data)[0], vectors(again, data)[0])
    assert first.info.untrained
    assert first.fingerprint(OPTIONS) == again.fingerprint(OPTIONS) != other.fingerprint(OPTIONS)


def test_loading_draws_no_random_number_from_the_process(folder):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    load(weights=str(folder))
    assert torch.equal(torch.rand(3), expected)


# -- what must not load ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"name": "ViT-B-32"}, "no weights.*untrained = true"),
        ({"name": "ViT-B-32", "weights": "laion2b_s34b_b79k", "untrained": True}, "keep one"),
        ({"untrained": True}, "name is missing"),
        ({"name": "EVA02-B-61", "untrained": True}, "EVA02-B-16"),
        ({"name": "EVA02-B-16", "weights": "merged2b"}, "merged2b_s8b_b131k"),
        ({"name": "ViT-B-32", "untrained": True, "options": {"wieghts": "x"}}, "wieghts is unknown"),
        ({"name": "ViT-B-32", "untrained": True, "options": {"image_resize_mode": "sideways"}}, "sideways"),
        ({"name": "ViT-B-32", "untrained": True, "device": "abacus"}, "abacus"),
    ],
)
def test_an_entry_that_cannot_be_used_says_why(entry, named):
    spec = ModelSpec(key="clip", adapter="open_clip", **entry)
    with pytest.raises(ConfigurationError, match=named):
        OpenClipAdapter().load(spec, LIMITS)


def test_weights_that_are_nowhere_are_no_random_ones(tmp_path):
    with pytest.raises(ModelUnavailableError, match=r"nowhere/model\.safetensors"):
        load(name="ViT-B-32", weights=str(tmp_path / "nowhere" / "model.safetensors"))
    with pytest.raises(ModelUnavailableError, match="a checkpoint was expected"):
        load(name="ViT-B-32", weights=str(tmp_path))


def test_a_lone_checkpoint_needs_the_architectures_name(copied):
    (copied / "open_clip_config.json").unlink()
    with pytest.raises(ConfigurationError, match="name is missing"):
        load(weights=str(copied / "open_clip_model.safetensors"))


def spoil(folder, change):
    """Rewrites the checkpoint after `change` has had its way with the tensors."""
    state = load_file(folder / "open_clip_model.safetensors")
    change(state)
    save_file(state, folder / "open_clip_model.safetensors")


def test_missing_weights_are_not_made_up(copied):
    spoil(copied, lambda state: state.pop("visual.proj"))
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights \(proj\)"):
        load(weights=str(copied))


def test_weights_that_the_architecture_does_not_know_are_refused(copied):
    spoil(copied, lambda state: state.update({"visual.more": torch.ones(2)}))
    with pytest.raises(ConfigurationError, match=r"unknown 1 weights \(more\)"):
        load(weights=str(copied))


def test_weights_of_another_shape_are_refused(copied):
    spoil(copied, lambda state: state.update({"visual.proj": torch.ones(64, 25)}))
    with pytest.raises(ConfigurationError, match="another architecture"):
        load(weights=str(copied))


def test_a_checkpoint_without_a_visual_tower_is_refused(copied):
    spoil(copied, lambda state: [state.pop(name) for name in list(state) if name.startswith("visual.")])
    with pytest.raises(ConfigurationError, match="another architecture"):
        load(weights=str(copied))


def test_the_text_tower_may_be_missing_or_live_on_the_hub(copied, model):
    """Neither its weights nor its model are asked for: no image passes through it."""
    spoil(copied, lambda state: [state.pop(name) for name in list(state) if not name.startswith("visual.")])
    config = json.loads((copied / "open_clip_config.json").read_text())
    config["model_cfg"] |= {"text_cfg": {"hf_model_name": "nobody/nothing", "hf_tokenizer_name": "nobody/nothing"}}
    (copied / "open_clip_config.json").write_text(json.dumps(config))
    data = [picture()]
    np.testing.assert_array_equal(vectors(load(weights=str(copied)), data)[0], vectors(model, data)[0])


def test_a_pickled_checkpoint_of_tensors_gives_the_same_vectors(copied, model):
    torch.save(load_file(copied / "open_clip_model.safetensors"), copied / "open_clip_pytorch_model.bin")
    (copied / "open_clip_model.safetensors").unlink()
    data = [picture()]
    np.testing.assert_array_equal(vectors(load(weights=str(copied)), data)[0], vectors(model, data)[0])


def test_a_pickle_with_more_than_tensors_names_the_setting(copied):
    state = load_file(copied / "open_clip_model.safetensors")
    torch.save({"state_dict": state, "args": pairwise}, copied / "epoch_1.pt")
    with pytest.raises(ConfigurationError, match="trust_pickle = true"):
        load(weights=str(copied / "epoch_1.pt"))
    assert load(weights=str(copied / "epoch_1.pt"), trust_pickle=True).info.dim == 24


@pytest.mark.parametrize("content", ["{ broken", '{"preprocess_cfg": {}}', "[]"])
def test_a_broken_configuration_is_named(copied, content):
    (copied / "open_clip_config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"open_clip_config\.json"):
        load(weights=str(copied))


# -- a device in trouble -----------------------------------------------------------------------------------------------


def test_running_out_of_memory_is_told_as_such(folder, monkeypatch):
    model = load(weights=str(folder))

    def no_memory(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "_tower", no_memory)
    with pytest.raises(DeviceOutOfMemoryError):
        model.forward(model.prepare([picture()], OPTIONS))


def test_a_closed_model_computes_nothing_more(folder):
    model = load(weights=str(folder))
    prepared = model.prepare([picture()], OPTIONS)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.forward(prepared)


# -- tags --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(folder, monkeypatch):
    """`fetched` in place of the hub: what was asked for, answered with the small ViT's checkpoint."""
    asked = []

    def fetch(repository, patterns):
        asked.append((str(repository), *patterns))
        return Snapshot(folder, repository)

    monkeypatch.setattr(Repository, "fetch", fetch)
    return asked


@pytest.mark.parametrize(
    ("name", "tag", "warned"),
    [("ViT-B-32", "openai", "ViT-B-32-quickgelu is meant"), ("ViT-B-32-quickgelu", "openai", "")],
)
def test_a_tag_says_where_its_weights_are_and_which_activation_they_want(tagged, caplog, name, tag, warned):
    source = resolve(ModelSpec(key="clip", adapter="open_clip", name=name, weights=tag))
    assert len(tagged) == 1
    assert tagged[0][1] == "open_clip_model.safetensors"
    assert source.checkpoint.name == "open_clip_model.safetensors"
    assert (warned in caplog.text) if warned else not caplog.records


def test_a_tag_brings_its_own_preprocessing_and_the_entry_overrules_it(tagged):
    entry = {"key": "clip", "adapter": "open_clip", "name": "ViT-B-16-SigLIP", "weights": "webli"}
    assert resolve(ModelSpec(**entry)).preprocess["mean"] == (0.5, 0.5, 0.5)
    assert resolve(ModelSpec(**entry)).preprocess["resize_mode"] == "squash"
    changed = resolve(ModelSpec(**entry, options={"image_resize_mode": "longest"}))
    assert (changed.preprocess["mean"], changed.preprocess["resize_mode"]) == ((0.5, 0.5, 0.5), "longest")


def test_a_tag_that_is_not_on_the_hub_is_refused_with_the_url_to_download(tagged, monkeypatch):
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"url": "https://example.org/b32.pt"})
    with pytest.raises(ConfigurationError, match=r"download https://example\.org/b32\.pt yourself"):
        resolve(ModelSpec(key="clip", adapter="open_clip", name="ViT-B-32", weights="openai"))
    assert tagged == []


def test_a_tag_of_the_hub_may_be_pinned(tagged):
    resolve(ModelSpec(key="c", adapter="open_clip", name="EVA02-B-16", weights="merged2b_s8b_b131k", revision="abc"))
    assert tagged[0][0] == "hf-hub:timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k@abc"


def test_a_configuration_beside_the_weights_goes_before_the_name(copied, caplog):
    with caplog.at_level("INFO", "legit_embedding"):
        assert load(name="ViT-B-32", weights=str(copied)).info.dim == 24
    assert "name = 'ViT-B-32' is not used" in caplog.text
