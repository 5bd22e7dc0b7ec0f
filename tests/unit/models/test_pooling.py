"""Pooling, worked out by hand for two texts of two and four tokens; padding on either side gives the same."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from legit_embedding.errors import ConfigurationError, ModelUnavailableError
from legit_embedding.models.pooling import activation, build_head, pool
from legit_embedding.models.sentence_files import Head, Pooling

SHORT = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
LONG = torch.tensor([[1.0, 0.0], [2.0, 5.0], [3.0, -1.0], [6.0, 4.0]])
POISON = torch.full((2, 2), 1000.0)  # what stands in the padding must not matter

RIGHT = torch.stack([torch.cat([SHORT, POISON]), LONG]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
LEFT = torch.stack([torch.cat([POISON, SHORT]), LONG]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
NO_PROMPT = torch.zeros(2, dtype=torch.int64)

BY_HAND = {
    "cls": [[1.0, -4.0], [1.0, 0.0]],
    "max": [[3.0, 2.0], [6.0, 5.0]],
    "mean": [[2.0, -1.0], [3.0, 2.0]],
    "mean_sqrt_len_tokens": [[4.0 / math.sqrt(2), -2.0 / math.sqrt(2)], [6.0, 4.0]],
    "weightedmean": [[7.0 / 3, 0.0], [38.0 / 10, 23.0 / 10]],
    "lasttoken": [[3.0, 2.0], [6.0, 4.0]],
}
WITHOUT_ONE_PROMPT_TOKEN = {
    "cls": [[3.0, 2.0], [2.0, 5.0]],
    "max": [[3.0, 2.0], [6.0, 5.0]],
    "mean": [[3.0, 2.0], [11.0 / 3, 8.0 / 3]],
    "mean_sqrt_len_tokens": [[3.0, 2.0], [11.0 / math.sqrt(3), 8.0 / math.sqrt(3)]],
    "weightedmean": [[3.0, 2.0], [37.0 / 9, 23.0 / 9]],
    "lasttoken": [[3.0, 2.0], [6.0, 4.0]],
}


@pytest.mark.parametrize("padding", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("mode", BY_HAND)
def test_each_mode_gives_what_is_worked_out_by_hand(mode, padding):
    pooled = pool(*padding, Pooling((mode,)), prompt_tokens=NO_PROMPT)
    torch.testing.assert_close(pooled, torch.tensor(BY_HAND[mode]))


@pytest.mark.parametrize("padding", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("mode", WITHOUT_ONE_PROMPT_TOKEN)
def test_the_prompts_tokens_are_left_out_where_the_model_says_so(mode, padding):
    pooled = pool(*padding, Pooling((mode,), include_prompt=False), prompt_tokens=torch.tensor([1, 1]))
    torch.testing.assert_close(pooled, torch.tensor(WITHOUT_ONE_PROMPT_TOKEN[mode]))


def test_texts_with_different_prompts_share_a_batch():
    pooled = pool(*LEFT, Pooling(("mean",), include_prompt=False), prompt_tokens=torch.tensor([0, 3]))
    torch.testing.assert_close(pooled, torch.tensor([[2.0, -1.0], [6.0, 4.0]]))


def test_prompt_tokens_count_like_others_where_they_are_included():
    pooled = pool(*RIGHT, Pooling(("mean",)), prompt_tokens=torch.tensor([1, 1]))
    torch.testing.assert_close(pooled, torch.tensor(BY_HAND["mean"]))


def test_several_modes_are_joined_in_their_order():
    pooled = pool(*RIGHT, Pooling(("max", "cls")), prompt_tokens=NO_PROMPT)
    torch.testing.assert_close(pooled, torch.tensor([[3.0, 2.0, 1.0, -4.0], [6.0, 5.0, 1.0, 0.0]]))


@pytest.mark.parametrize("mode", ["mean", "lasttoken", "weightedmean"])
def test_a_text_of_which_nothing_is_left_has_no_direction(mode):
    """All zero: the check of the finished vector turns it into an error."""
    pooled = pool(*RIGHT, Pooling((mode,), include_prompt=False), prompt_tokens=torch.tensor([2, 0]))
    assert pooled[0].tolist() == [0.0, 0.0]


def test_half_precision_is_pooled_in_float32():
    hidden, mask = RIGHT
    assert pool(hidden.to(torch.bfloat16), mask, Pooling(), prompt_tokens=NO_PROMPT).dtype == torch.float32


def save_dense(folder, weights, **config):
    folder.mkdir()
    config = {"in_features": 2, "out_features": 2, **config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    return Head("Dense", folder.name, config)


WEIGHTS = {"linear.weight": torch.tensor([[1.0, 2.0], [0.0, -1.0]]), "linear.bias": torch.tensor([0.5, 0.0])}
VECTOR = torch.tensor([[1.0, 1.0]])


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ({}, WEIGHTS, [math.tanh(3.5), math.tanh(-1.0)]),
        ({"activation_function": "torch.nn.modules.linear.Identity"}, WEIGHTS, [3.5, -1.0]),
        (
            {"activation_function": "torch.nn.modules.activation.ReLU", "bias": False},
            {"linear.weight": WEIGHTS["linear.weight"]},
            [3.0, 0.0],
        ),
        ({"activation_function": "torch.nn.modules.linear.Identity", "use_residual": True}, WEIGHTS, [4.5, 0.0]),
    ],
)
def test_a_dense_layer_has_its_own_activation_bias_and_residual(tmp_path, config, weights, expected):
    head = save_dense(tmp_path / "2_Dense", weights, **config)
    module = build_head([head], tmp_path, untrained=False, trust_pickle=False)
    torch.testing.assert_close(module(VECTOR), torch.tensor([expected]))


def test_normalising_and_layer_norm_follow_in_their_order(tmp_path):
    (tmp_path / "2_LayerNorm").mkdir()
    save_file({"norm.weight": torch.ones(2), "norm.bias": torch.zeros(2)}, tmp_path / "2_LayerNorm/model.safetensors")
    heads = [Head("LayerNorm", "2_LayerNorm", {"dimension": 2}), Head("Normalize", "3_Normalize")]
    module = build_head(heads, tmp_path, untrained=False, trust_pickle=False)
    torch.testing.assert_close(module(torch.tensor([[1.0, 3.0]])), torch.tensor([[-1.0, 1.0]]) / math.sqrt(2))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    head = save_dense(tmp_path / "2_Dense", {"linear.weight": WEIGHTS["linear.weight"]})
    with pytest.raises(ConfigurationError, match=r"linear\.bias"):
        build_head([head], tmp_path, untrained=False, trust_pickle=False)


def test_missing_weights_of_a_head_are_not_made_up(tmp_path):
    head = Head("Dense", "2_Dense", {"in_features": 2, "out_features": 2})
    with pytest.raises(ModelUnavailableError, match="2_Dense"):
        build_head([head], tmp_path, untrained=False, trust_pickle=False)


@pytest.mark.parametrize("config", [{}, {"in_features": "many", "out_features": 1}])
def test_a_head_whose_configuration_is_broken_is_named(tmp_path, config):
    with pytest.raises(ConfigurationError, match=r"2_Dense/config\.json"):
        build_head([Head("Dense", "2_Dense", config)], tmp_path, untrained=True, trust_pickle=False)


@pytest.mark.parametrize("name", ["os.system", "torch.nn.functional.relu", "torch.nn.NoSuchThing", "mymodel.Act"])
def test_an_activation_is_one_of_torchs_or_none(name):
    with pytest.raises(ConfigurationError, match=name):
        activation(name, "here")
