"""`models.toml`: what it may say, and what it is told where it cannot be used."""

import pytest

from legit_embedding.errors import ConfigurationError, UnknownModelError
from legit_embedding.models.catalog import Catalog, ModelSpec

FULL = """
[defaults]
image = "clip"

[models.clip]
adapter = "open_clip"
name = "EVA02-B-16"
weights = "/weights/eva02.safetensors"
revision = "main"
device = "cuda:1"
dtype = "bfloat16"
max_items = 16
max_tokens = 4096
idle_unload_s = 600
trust_remote_code = true
trust_pickle = true
untrained = true
seed = 7
prompts = { query = "query: " }
attention = "flash"
"""


def test_every_key_is_read_and_what_only_the_adapter_knows_is_passed_on():
    catalog = Catalog.parse(FULL)
    assert catalog.spec("clip") == ModelSpec(
        key="clip",
        adapter="open_clip",
        name="EVA02-B-16",
        weights="/weights/eva02.safetensors",
        revision="main",
        device="cuda:1",
        dtype="bfloat16",
        max_items=16,
        max_tokens=4096,
        idle_unload_s=600,
        prompts={"query": "query: "},
        trust_remote_code=True,
        trust_pickle=True,
        untrained=True,
        seed=7,
        options={"attention": "flash"},
    )
    assert catalog.default("image") == "clip"


def test_without_a_file_the_built_in_models_are_declared():
    catalog = Catalog.load(None)
    assert {modality: catalog.spec(key).adapter for modality, key in catalog.defaults.items()} == {
        "image": "open_clip",
        "text": "transformers",
    }


def test_a_catalogue_may_be_empty():
    with pytest.raises(UnknownModelError, match="declared are: none"):
        Catalog.parse("").spec("clip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.a", "not TOML: Expected ']' at the end of a table declaration (at end of document)"),
        ("[model.a]", "unknown table [model]; there are [defaults] and [models.<key>]"),
        ("models = 7", "models must be tables: [models.<key>]"),
        ("[models]\na = 7", "models must be tables: [models.<key>]"),
        ("defaults = 7", "defaults must be a table: [defaults]"),
        (
            "[models.a]\nname = 'x'",
            "models.a.adapter is missing; it says how the model is loaded (open_clip, transformers)",
        ),
        ("[models.a]\nadapter = 7", "models.a.adapter: Input should be a valid string (got 7)"),
        ("[models.a]\nadapter = 'x'\nmax_items = '8'", "models.a.max_items: Input should be a valid integer (got '8')"),
        ("[models.a]\nadapter = 'x'\nmax_items = 0", "models.a.max_items must be above 0, not 0"),
        ("[models.a]\nadapter = 'x'\nmax_tokens = -1", "models.a.max_tokens must be above 0, not -1"),
        ("[models.a]\nadapter = 'x'\nidle_unload_s = 0", "models.a.idle_unload_s must be above 0, not 0.0"),
        ("[models.a]\nadapter = 'x'\nuntrained = 1", "models.a.untrained: Input should be a valid boolean (got 1)"),
        ("[defaults]\nimage = 'b'", "defaults.image names 'b', which is not declared as [models.b]"),
        ("[defaults]\nimage = ['b']", "defaults.image must be the key of a model, not ['b']"),
    ],
)
def test_what_cannot_be_used_is_named(text, message):
    with pytest.raises(ConfigurationError) as raised:
        Catalog.parse(text)
    assert str(raised.value) == message


def test_an_error_in_a_file_names_the_setting_and_the_file(tmp_path):
    path = tmp_path / "models.toml"
    path.write_text("[model.a]")
    with pytest.raises(ConfigurationError) as raised:
        Catalog.load(path)
    assert str(raised.value).startswith(f"LEGIT_MODELS={path}: unknown table [model]")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_names_the_setting(tmp_path, content):
    path = tmp_path / "models.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"LEGIT_MODELS={path}: "):
        Catalog.load(path)


def test_a_modality_without_a_default_is_told_where_to_declare_one():
    with pytest.raises(UnknownModelError) as raised:
        Catalog.parse("").default("image")
    assert str(raised.value) == "no default model for image: name one in `model`, or in [defaults] of models.toml"
