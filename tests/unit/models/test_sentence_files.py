"""A model's sentence-transformers files, in their old and new forms."""

import json

import pytest

from legit_embedding.errors import ConfigurationError
from legit_embedding.models.sentence_files import Head, Pooling, SentenceFiles

OURS = "sentence_transformers.models."


def write(folder, **files):
    """Each keyword is a path, with `__` for a slash; the value is written as JSON."""
    for name, content in files.items():
        path = folder / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def modules(*kinds):
    """Each kind in its own folder, the first one in the model's."""
    return [
        {"idx": place, "name": str(place), "path": f"{place}_{kind}" if place else "", "type": OURS + kind}
        for place, kind in enumerate(kinds)
    ]


def test_a_folder_without_such_files_pools_by_the_mean_and_says_that_this_is_a_guess(tmp_path):
    files = SentenceFiles.read(tmp_path)
    assert (files.declared, files.pooling, files.heads, files.max_seq_length) == (False, Pooling(), (), None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling(("cls",))),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, Pooling(("cls", "mean"))),
        ({"pooling_mode_lasttoken": True, "include_prompt": False}, Pooling(("lasttoken",), include_prompt=False)),
        ({"pooling_mode": "max"}, Pooling(("max",))),
        ({"pooling_mode": ["mean", "max"], "pooling_mode_cls_token": True}, Pooling(("mean", "max"))),
        ({"pooling_mode_cls_token": False}, Pooling(("mean",))),
        ({}, Pooling(("mean",))),
    ],
)
def test_pooling_is_read_in_its_old_and_its_new_form(tmp_path, config, expected):
    write(tmp_path, modules=modules("Transformer", "Pooling"))
    write(tmp_path, **{"1_Pooling__config": config})
    assert SentenceFiles.read(tmp_path).pooling == expected


def test_heads_keep_their_order_and_configuration(tmp_path):
    dense = {"in_features": 4, "out_features": 2}
    write(tmp_path, modules=modules("Transformer", "Pooling", "Dense", "Dropout", "Normalize"))
    write(tmp_path, **{"2_Dense__config": dense})
    assert SentenceFiles.read(tmp_path).heads == (
        Head("Dense", "2_Dense", dense),
        Head("Normalize", "4_Normalize", {}),
    )


def test_the_newer_module_names_are_known_too(tmp_path):
    types = [
        "sentence_transformers.base.modules.transformer.Transformer",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    ]
    write(tmp_path, modules=[{"path": str(place), "type": kind} for place, kind in enumerate(types)])
    files = SentenceFiles.read(tmp_path)
    assert (files.declared, files.transformer) == (True, "0")


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ((OURS + "Transformer", "custom_st.Pooling"), "custom_st.Pooling"),
        ((OURS + "StaticEmbedding",), "StaticEmbedding"),
        ((OURS + "Transformer", OURS + "Pooling", OURS + "WeightedLayerPooling"), "WeightedLayerPooling"),
        ((OURS + "Pooling", OURS + "Transformer"), "Pooling"),
        ((OURS + "Transformer", OURS + "Pooling", OURS + "Pooling"), "Pooling"),
        ((OURS + "Transformer",), "no Pooling"),
    ],
)
def test_a_module_that_is_unknown_or_out_of_place_is_named(tmp_path, kinds, named):
    write(tmp_path, modules=[{"path": str(place), "type": kind} for place, kind in enumerate(kinds)])
    with pytest.raises(ConfigurationError, match=named):
        SentenceFiles.read(tmp_path)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"modules": "{ broken"}, "modules.json"),
        ({"modules": [{"path": ""}]}, "no type"),
        ({"modules": [{"path": "../outside", "type": OURS + "Transformer"}]}, "leads out"),
        ({"modules": [{"path": "/etc", "type": OURS + "Transformer"}]}, "leads out"),
        ({"config_sentence_transformers": {"default_prompt_name": "q"}}, "'q'"),
        (
            {"modules": modules("Transformer", "Pooling"), "1_Pooling__config": {"pooling_mode": "median"}},
            "median",
        ),
        (
            {
                "modules": modules("Transformer", "Pooling", "Dense"),
                "2_Dense__config": {"module_input_name": "token_embeddings"},
            },
            "token_embeddings",
        ),
        (
            {
                "modules": modules("Transformer", "Pooling"),
                "sentence_bert_config": {"transformer_task": "fill-mask"},
            },
            "fill-mask",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, files, named):
    write(tmp_path, **files)
    with pytest.raises(ConfigurationError, match=named):
        SentenceFiles.read(tmp_path)


def test_limit_case_and_prompts_are_read(tmp_path):
    write(
        tmp_path,
        modules=modules("Transformer", "Pooling"),
        sentence_roberta_config={"max_seq_length": 128, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "q: ", "document": None}, "default_prompt_name": "query"},
    )
    files = SentenceFiles.read(tmp_path)
    assert (files.max_seq_length, files.do_lower_case) == (128, True)
    assert (files.prompts, files.default_prompt) == ({"query": "q: ", "document": ""}, "query")
