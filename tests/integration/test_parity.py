"""Our vectors are those of open_clip and sentence-transformers, on the same weights, side by side."""

import io
import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from sentence_transformers import SentenceTransformer

from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.clip import OpenClipAdapter
from legit_embedding.models.text import TransformersAdapter
from legit_embedding.testing.checkpoints import minilm_folder, save_open_clip, save_small_bert, save_small_eva02
from legit_embedding.values import Options

LIMITS = InputLimits(max_pixels=50_000_000)
OPTIONS = Options()
EXACT, HALF = 0.99999, 0.999

VISION = {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16, "head_width": 32}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1}
POOLED = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
ARCHITECTURES = {
    "vit": {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT},
    "quickgelu": {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True},
    "resnet": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 48,
        "vision_cfg": {**VISION, **POOLED},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}


def coloured(size=(310, 230), seed=5):
    """Smooth colours with some noise on them: what photographs are like for a resizing filter."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = random.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image):
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def with_transparent_palette(image):
    return encoded(image.quantize(64), "PNG", transparency=bytes(range(64)))


def sixteen_bit(image):
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey), "PNG")


def rotated_by_exif(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", quality=90, exif=exif)


PICTURES = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=85),
    "jpeg-progressive": lambda image: encoded(image, "JPEG", quality=70, progressive=True),
    "jpeg-grey": lambda image: encoded(image.convert("L"), "JPEG"),
    "jpeg-cmyk": lambda image: encoded(image.convert("CMYK"), "JPEG"),
    "jpeg-exif-rotated": rotated_by_exif,
    "png-rgb": lambda image: encoded(image, "PNG"),
    "png-rgba": lambda image: encoded(with_alpha(image), "PNG"),
    "png-palette": lambda image: encoded(image.quantize(64), "PNG"),
    "png-palette-transparent": with_transparent_palette,
    "png-grey": lambda image: encoded(image.convert("L"), "PNG"),
    "png-grey-alpha": lambda image: encoded(with_alpha(image).convert("LA"), "PNG"),
    "png-bilevel": lambda image: encoded(image.convert("1"), "PNG"),
    "png-16-bit": sixteen_bit,
    "webp": lambda image: encoded(image, "WEBP", quality=80),
    "webp-lossless-alpha": lambda image: encoded(with_alpha(image), "WEBP", lossless=True),
    "gif": lambda image: encoded(image.quantize(128), "GIF"),
    "gif-animated": lambda image: encoded(
        image.quantize(64), "GIF", save_all=True, append_images=[image.rotate(90).quantize(64)]
    ),
    "bmp": lambda image: encoded(image, "BMP"),
    "tiff": lambda image: encoded(image, "TIFF"),
    "tiff-rotated": lambda image: encoded(image, "TIFF", tiffinfo={0x0112: 6}),
}


def load_clip(**entry):
    return OpenClipAdapter().load(ModelSpec(key="clip", adapter="open_clip", device="cpu", **entry), LIMITS)


def load_text(folder, **entry):
    spec = ModelSpec(key="text", adapter="transformers", weights=str(folder), device="cpu", **entry)
    return TransformersAdapter().load(spec, LIMITS)


def vectors(model, payloads, options=OPTIONS):
    prepared = model.prepare(payloads, options)
    return np.stack(model.finish(model.forward(prepared), [options] * len(prepared)))


def cosines(ours, theirs):
    theirs = np.asarray(theirs, np.float64)
    return (ours * (theirs / np.linalg.norm(theirs, axis=1, keepdims=True))).sum(axis=1)


# -- images: what the model is given -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eva02_folder(tmp_path_factory):
    return save_small_eva02(tmp_path_factory.mktemp("eva02") / "model")


@pytest.fixture(scope="module")
def eva02(eva02_folder):
    return load_clip(weights=str(eva02_folder), dtype="float32")


@pytest.fixture(scope="module")
def reference(eva02_folder):
    """The whole model and its transform, loaded by open_clip itself."""
    return open_clip.create_model_from_pretrained(f"local-dir:{eva02_folder}")


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # the reference's own
@pytest.mark.parametrize("size", [(310, 230), (120, 470), (224, 224), (40, 30)], ids=str)
@pytest.mark.parametrize("kind", PICTURES)
def test_a_prepared_image_equals_open_clips_own_transform(eva02, reference, kind, size):
    """Bit for bit, in every colour mode and format, orientation tags included."""
    data = PICTURES[kind](coloured(size))
    _, transform = reference
    ours = eva02.inputs(eva02.prepare([data], OPTIONS))[0]
    assert torch.equal(ours, transform(Image.open(io.BytesIO(data))))


def test_in_bf16_the_model_is_given_the_same_values_rounded(eva02_folder, reference):
    half = load_clip(weights=str(eva02_folder), dtype="bfloat16")
    data = PICTURES["jpeg"](coloured())
    _, transform = reference
    expected = transform(Image.open(io.BytesIO(data))).to(torch.bfloat16)
    assert torch.equal(half.inputs(half.prepare([data], OPTIONS))[0], expected)


# -- images: what it gives back ----------------------------------------------------------------------------------------


def by_open_clip(model, transform, payloads):
    batch = torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in payloads])
    with torch.inference_mode():
        return model.eval().encode_image(batch).float().numpy()


def some_pictures(count=2):
    return [encoded(coloured((200 + 40 * seed, 260), seed), "JPEG", quality=90) for seed in range(count)]


@pytest.mark.parametrize(("dtype", "least"), [("float32", EXACT), ("bfloat16", HALF)])
def test_eva02_gives_open_clips_vectors(eva02_folder, reference, dtype, least):
    ours = vectors(load_clip(weights=str(eva02_folder), dtype=dtype), some_pictures())
    assert cosines(ours, by_open_clip(*reference, some_pictures())).min() >= least


@pytest.mark.parametrize(("dtype", "least"), [("float32", EXACT), ("bfloat16", HALF)])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_give_open_clips_vectors(tmp_path, kind, dtype, least):
    folder = save_open_clip(tmp_path / kind, ARCHITECTURES[kind])
    reference = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    ours = vectors(load_clip(weights=str(folder), dtype=dtype), some_pictures())
    assert cosines(ours, by_open_clip(*reference, some_pictures())).min() >= least


def test_position_embeddings_of_another_image_size_are_resized_as_open_clip_does_it(tmp_path):
    folder = save_open_clip(tmp_path / "vit", ARCHITECTURES["vit"])
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 96
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    reference = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    ours = vectors(load_clip(weights=str(folder), dtype="float32"), some_pictures())
    assert cosines(ours, by_open_clip(*reference, some_pictures())).min() >= EXACT


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_lone_checkpoint_of_a_named_architecture_gives_open_clips_vectors(tmp_path, suffix):
    """As training leaves it: one file, and the name of the architecture."""
    torch.manual_seed(3)
    whole = open_clip.create_model("ViT-S-32-alt")
    path = tmp_path / f"epoch_1.{suffix}"
    if suffix == "pt":
        torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(whole.state_dict(), path)
    model, transform = open_clip.create_model_from_pretrained("ViT-S-32-alt", str(path))
    ours = vectors(load_clip(name="ViT-S-32-alt", weights=str(path), dtype="float32"), some_pictures())
    assert cosines(ours, by_open_clip(model, transform, some_pictures())).min() >= EXACT


@pytest.mark.slow
def test_the_full_size_eva02_gives_open_clips_vectors():
    """With its own seeded weights in both: the trained ones are 300 MB on the hub."""
    seeded = load_clip(name="EVA02-B-16", untrained=True, dtype="float32")
    model = open_clip.create_model("EVA02-B-16")
    model.visual.load_state_dict(seeded._tower.state_dict())
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    theirs = by_open_clip(model, transform, some_pictures())
    assert cosines(vectors(seeded, some_pictures()), theirs).min() >= EXACT
    half = load_clip(name="EVA02-B-16", untrained=True, dtype="bfloat16")
    assert cosines(vectors(half, some_pictures()), theirs).min() >= HALF


# -- texts -------------------------------------------------------------------------------------------------------------

TEXTS = [
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "  spaces   around and\ttabs\n",
    "Ünïcode, 漢字 and an emoji 🙂",
    "one word",
    "What is the capital of France, and how many people live there?",
    "punctuation!!! (lots) [of] {it}; 1,234.5",
    *("river stone lamp winter copper garden violin market thunder " * count for count in (3, 12, 40, 90)),
]


@pytest.mark.parametrize(("dtype", "least"), [("float32", EXACT), ("bfloat16", HALF)])
def test_minilm_gives_the_vectors_of_sentence_transformers(dtype, least):
    """Its trained weights; the longest text is cut by both."""
    folder = minilm_folder()
    model = load_text(folder, dtype=dtype)
    assert max(one.tokens for one in model.prepare(TEXTS, OPTIONS)) == 256
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert cosines(vectors(model, TEXTS), theirs).min() >= least


KINDS = {
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "mean-sqrt": {"pooling": "mean_sqrt_len_tokens"},
    "weighted": {"pooling": "weightedmean"},
    "last-token": {"pooling": "lasttoken"},
    "last-token-left": {"pooling": "lasttoken", "padding_side": "left"},
    "weighted-left": {"pooling": "weightedmean", "padding_side": "left"},
    "joined": {"pooling": ("cls", "mean", "max")},
    "dense": {"dense": 24, "normalize": True},
    "joined-dense": {"pooling": ("mean", "lasttoken"), "dense": 16},
}


@pytest.mark.parametrize(("dtype", "least"), [("float32", EXACT), ("bfloat16", HALF)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pooling_gives_the_vectors_of_sentence_transformers(tmp_path, kind, dtype, least):
    folder = save_small_bert(tmp_path / kind, **KINDS[kind])
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert cosines(vectors(load_text(folder, dtype=dtype), TEXTS), theirs).min() >= least


def test_lengths_are_those_of_sentence_transformers_where_nothing_normalises(tmp_path):
    """Not the direction alone."""
    folder = save_small_bert(tmp_path / "plain", dense=24)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(
        vectors(load_text(folder, dtype="float32"), TEXTS, Options(normalize=False)), theirs, atol=1e-5
    )


@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean", "lasttoken"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_give_the_vectors_of_sentence_transformers(tmp_path, pooling, include_prompt):
    prompts = {"query": "find: ", "document": "text: "}
    folder = save_small_bert(tmp_path / "m", pooling=pooling, include_prompt=include_prompt, prompts=prompts)
    reference = SentenceTransformer(str(folder), device="cpu")
    model = load_text(folder, dtype="float32")
    for name in prompts:
        theirs = reference.encode(TEXTS, prompt_name=name)
        assert cosines(vectors(model, TEXTS, Options(prompt=name)), theirs).min() >= EXACT


def test_a_cut_vector_is_that_of_sentence_transformers(tmp_path):
    folder = save_small_bert(tmp_path / "m")
    theirs = SentenceTransformer(str(folder), device="cpu", truncate_dim=8).encode(TEXTS, normalize_embeddings=True)
    ours = vectors(load_text(folder, dtype="float32"), TEXTS, Options(dimensions=8))
    assert cosines(ours, theirs).min() >= EXACT


def test_lower_casing_is_that_of_sentence_transformers(tmp_path):
    """A cased tokenizer under `do_lower_case`."""
    folder = save_small_bert(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": True}))
    texts = ["Some WORDS in Capitals", "and none"]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert cosines(vectors(load_text(folder, dtype="float32"), texts), theirs).min() >= EXACT
