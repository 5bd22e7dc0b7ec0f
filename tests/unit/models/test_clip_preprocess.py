"""Cut in two, open_clip's transform gives what it gives in one piece, whatever the model asks for."""

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from legit_embedding.errors import ConfigurationError, SourceTooLargeError, UndecodableError
from legit_embedding.models.clip_preprocess import Preprocess


def noise(width, height):
    return Image.merge("RGB", [Image.effect_noise((width, height), 60 + 40 * band) for band in range(3)])


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (20, 10), (33, 500)])
@pytest.mark.parametrize(
    "config",
    [
        {"size": 64},
        {"size": (64, 64), "resize_mode": "squash", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        {"size": (64, 48)},
        {"size": 64, "resize_mode": "longest", "fill_color": 128},
        {"size": 64, "interpolation": "bilinear"},
    ],
    ids=["shortest", "squash", "oblong", "longest", "bilinear"],
)
def test_every_kind_of_preprocessing_is_open_clips_bit_for_bit(config, size):
    image = noise(*size)
    preprocess = Preprocess(config, device="cpu")
    pixels = preprocess.pixels(image)
    ours = preprocess.normalise(torch.from_numpy(pixels)[None])[0]
    assert pixels.shape == preprocess.shape
    assert torch.equal(ours, image_transform_v2(PreprocessCfg(**config), is_train=False)(image))


def test_a_sliver_that_resizing_would_blow_up_is_too_large():
    """1 x 5,000 pixels would become 64 x 320,000 before it is cropped."""
    preprocess = Preprocess({"size": 64}, device="cpu")
    with pytest.raises(SourceTooLargeError, match=r"1 x 5000.*LEGIT_MAX_PIXELS \(20,479,999\)"):
        preprocess.check_resizable(Image.new("L", (1, 5000)), 64 * 320_000 - 1)
    preprocess.check_resizable(Image.new("L", (1, 5000)), 64 * 320_000)


def test_a_sliver_is_no_matter_where_both_sides_are_squashed():
    Preprocess({"size": 64, "resize_mode": "squash"}, device="cpu").check_resizable(Image.new("L", (1, 5000)), 64 * 64)


def test_an_image_without_a_way_to_the_models_size_is_undecodable():
    """Its shorter side would have no pixel left."""
    with pytest.raises(UndecodableError):
        Preprocess({"size": 64, "resize_mode": "longest"}, device="cpu").pixels(Image.new("L", (1, 5000)))


@pytest.mark.parametrize("config", [{"resize_mode": "sideways"}, {"interpolation": "guess"}, {"mode": "HSV"}])
def test_a_preprocessing_that_open_clip_does_not_know_is_refused(config):
    with pytest.raises(ConfigurationError, match=next(iter(config.values()))):
        Preprocess(config, device="cpu")
