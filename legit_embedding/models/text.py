"""Texts with transformers, pooled as the model's own sentence-transformers files say."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from legit_embedding.errors import ConfigurationError, EmbeddingError, InvalidItemError, SourceTooLargeError
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.device import choose_device, choose_dtype, dtype_name, out_of_memory_guard, release_cached
from legit_embedding.models.pooling import build_head, pool
from legit_embedding.models.sentence_files import Pooling, SentenceFiles
from legit_embedding.models.tensors import module_nbytes, seeded, staging, state_digest, to_device, to_host
from legit_embedding.models.text_settings import check_options, limit_of, pooling_of
from legit_embedding.models.text_weights import TextSource, load_config, load_tokenizer, load_transformer, locate
from legit_embedding.models.tokens import TextEncoder, Tokens, TooManyTokens
from legit_embedding.models.vectors import finalize, fingerprint
from legit_embedding.models.weights import digest_of
from legit_embedding.values import BatchLimits, FloatMatrix, InputKind, ModelInfo, Options, Outcome, Payload, Prepared

CPU_LIMITS = BatchLimits(max_items=32, max_tokens=4096)
ACCELERATOR_LIMITS = BatchLimits(max_items=256, max_tokens=16_384)
"""A batch, unless `max_items` and `max_tokens` say otherwise; tokens count with their padding."""

CHUNK = 32


class TransformersAdapter:
    """Loads an entry with `adapter = "transformers"`."""

    modality: ClassVar[str] = "text"

    def load(self, spec: ModelSpec, limits: InputLimits) -> "TransformersModel":  # noqa: ARG002  of images
        """See `Adapter.load`."""
        check_options(spec)
        device = choose_device(spec.device)
        dtype = choose_dtype(spec.dtype, device)
        source = locate(spec)
        pooling = pooling_of(spec, source.files)
        config = load_config(source, spec)
        tokenizer = load_tokenizer(source, spec)
        encoder = TextEncoder(
            tokenizer,
            limit=limit_of(spec, source.files, tokenizer, config),
            lower_case=source.files.do_lower_case,
        )
        transformer = load_transformer(source, config, spec)
        with seeded(spec.seed):
            head = build_head(
                source.files.heads, source.folder, untrained=spec.untrained, trust_pickle=spec.trust_pickle
            )
        weights = _identity(spec, source, transformer, head)
        with out_of_memory_guard(device):
            transformer.eval().requires_grad_(requires_grad=False).to(device=device, dtype=dtype)
            head.eval().requires_grad_(requires_grad=False).to(device=device)  # in float32: it is small
        return TransformersModel(
            transformer,
            head,
            encoder,
            spec=spec,
            files=source.files,
            pooling=pooling,
            weights=weights,
            device=device,
            dtype=dtype,
        )


class TransformersModel:
    """A loaded text model; see `EmbeddingModel`."""

    def __init__(
        self,
        transformer: torch.nn.Module,
        head: torch.nn.Module,
        encoder: TextEncoder,
        *,
        spec: ModelSpec,
        files: SentenceFiles,
        pooling: Pooling,
        weights: str,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self._transformer: torch.nn.Module | None = transformer
        self._head = head
        self._encoder = encoder
        self._pooling = pooling
        self._prompts = {**files.prompts, **spec.prompts}
        self._default_prompt = files.default_prompt
        self._prompt_lengths: dict[str, int] = {}
        self._names = _input_names(transformer)
        self._identity = fingerprint(
            adapter="transformers",
            weights=weights,
            pooling=[pooling.modes, pooling.include_prompt],
            heads=[(head.kind, dict(head.config)) for head in files.heads],
            lower_case=files.do_lower_case,
            limit=encoder.limit,
        )
        default = CPU_LIMITS if device == "cpu" else ACCELERATOR_LIMITS
        with torch.inference_mode():
            hidden = int(_hidden_size(transformer))
            dim = head(torch.zeros(1, hidden * len(pooling.modes), device=device)).shape[1]
        self._info = ModelInfo(
            name=spec.key,
            adapter="transformers",
            modality=TransformersAdapter.modality,
            dim=dim,
            device=device,
            dtype=dtype_name(dtype),
            nbytes=module_nbytes(transformer) + module_nbytes(head),
            limits=BatchLimits(spec.max_items or default.max_items, spec.max_tokens or default.max_tokens),
            untrained=spec.untrained,
        )

    @property
    def info(self) -> ModelInfo:
        """What this model is."""
        return self._info

    @property
    def accepts(self) -> frozenset[InputKind]:
        """Texts."""
        return frozenset({"text"})

    @property
    def prepare_chunk(self) -> int:
        """Many: tokenising a text takes microseconds, less than the way to a thread and back."""
        return CHUNK

    @property
    def prepared_nbytes(self) -> int:
        """The ids of a text of the longest length."""
        return self._encoder.tokens_nbytes

    @property
    def max_tokens(self) -> int:
        """Where a text is cut, special tokens included."""
        return self._encoder.limit

    def fingerprint(self, options: Options) -> str:
        """See `EmbeddingModel.fingerprint`; `truncate` is no part of it, because it changes no vector."""
        return fingerprint(
            model=self._identity,
            prompt=self._prompts.get(self._prompt_name(options) or "", ""),
            normalize=options.normalize,
            dimensions=options.dimensions or self._info.dim,
        )

    def prepare(self, payloads: Sequence[Payload], options: Options) -> list[Prepared | EmbeddingError]:
        """Prompt and tokenise."""
        name = self._prompt_name(options)
        if name is not None and name not in self._prompts:
            return [InvalidItemError(self._unknown_prompt(name))] * len(payloads)
        prompt = "" if name is None else self._prompts[name]
        texts = [prompt + text if isinstance(text, str) else "" for text in payloads]
        found = self._encoder.encode(texts, truncate=options.truncate, prompt=self._prompt_length(prompt))
        return [
            self._prepared(tokens)
            if isinstance(payload, str)
            else InvalidItemError(f"{self._info.name!r} is a text model and takes nothing else")
            for payload, tokens in zip(payloads, found, strict=True)
        ]

    def forward(self, batch: Sequence[Prepared]) -> FloatMatrix:
        """Embeddings of shape (n, dim), on the host: this returns when the device is done."""
        if self._transformer is None:
            raise RuntimeError(f"the model {self._info.name!r} is closed")
        texts: list[Tokens] = [one.data for one in batch]
        with torch.inference_mode(), out_of_memory_guard(self._info.device):
            inputs = {name: self._on_device(array) for name, array in self._padded(texts).items()}
            prompt_tokens = self._on_device(np.array([text.prompt for text in texts], np.int64))
            output = self._transformer(**{name: inputs[name] for name in inputs if name in self._names})
            hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
            pooled = pool(hidden, inputs["attention_mask"], self._pooling, prompt_tokens=prompt_tokens)
            return to_host(self._head(pooled))

    def finish(self, raw: FloatMatrix, options: Sequence[Options]) -> list[Outcome]:
        """Cut, normalised, checked."""
        return finalize(raw, options)

    def close(self) -> None:
        """Frees the weights."""
        self._transformer = None
        release_cached(self._info.device)

    def __repr__(self) -> str:
        info = self._info
        return f"<TransformersModel {info.name} on {info.device} in {info.dtype}, dim {info.dim}>"

    def _prompt_name(self, options: Options) -> str | None:
        return options.prompt if options.prompt is not None else self._default_prompt

    def _prompt_length(self, prompt: str) -> int:
        """Measured once a prompt, and only where it matters; two threads that do it at once measure the same."""
        if self._pooling.include_prompt or not prompt:
            return 0
        if prompt not in self._prompt_lengths:
            self._prompt_lengths[prompt] = self._encoder.prompt_length(prompt)
        return self._prompt_lengths[prompt]

    def _unknown_prompt(self, name: str) -> str:
        known = ", ".join(sorted(self._prompts)) or "none"
        return f"options.prompt {name!r} is unknown to the model {self._info.name!r}; its prompts are: {known}"

    def _prepared(self, tokens: Tokens | TooManyTokens) -> Prepared | EmbeddingError:
        if isinstance(tokens, TooManyTokens):
            more = "" if tokens.exact else "more than "
            return SourceTooLargeError(
                f"the text has {more}{tokens.count} tokens, the model {self._info.name!r} takes {self._encoder.limit}; "
                "with options.truncate it would be cut"
            )
        return Prepared(data=tokens, tokens=len(tokens.ids), nbytes=tokens.nbytes)

    def _padded(self, texts: Sequence[Tokens]) -> Mapping[str, NDArray[np.int64]]:
        """The model's inputs, each of shape (n, longest of the batch)."""
        shape = len(texts), max(len(text.ids) for text in texts)
        arrays = {
            "input_ids": np.full(shape, self._encoder.pad_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
        }
        if texts[0].types is not None:
            arrays["token_type_ids"] = np.full(shape, self._encoder.pad_type, np.int64)
        for row, text in enumerate(texts):
            place = slice(shape[1] - len(text.ids), None) if self._encoder.pads_left else slice(len(text.ids))
            arrays["input_ids"][row, place] = text.ids
            arrays["attention_mask"][row, place] = 1
            if text.types is not None:
                arrays["token_type_ids"][row, place] = text.types
        return arrays

    def _on_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        host = staging(array.shape, torch.int64, self._info.device)
        host.numpy()[...] = array
        return to_device(host, self._info.device)


def _identity(spec: ModelSpec, source: TextSource, transformer: torch.nn.Module, head: torch.nn.Module) -> str:
    meaning = digest_of(source.meaning_files())
    if spec.untrained:
        weights = state_digest({**transformer.state_dict(), **head.state_dict(prefix="head.")})
        return f"untrained-{spec.seed}-{weights}-{meaning}"
    return f"{digest_of(source.weight_files())}-{meaning}"


def _input_names(transformer: torch.nn.Module) -> frozenset[str]:
    """Which inputs the model takes, out of those that a tokenizer makes."""
    parameters = inspect.signature(transformer.forward).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    common = {"input_ids", "attention_mask"}
    return frozenset(common | {"token_type_ids"} if takes_any else set(parameters))


def _hidden_size(transformer: torch.nn.Module) -> int:
    """Width of a token's vector; configurations call it by several names, some hide it in the text model's own part."""
    config: Any = transformer.config
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        size = getattr(inner, name, None)
        if isinstance(size, int):
            return size
    raise ConfigurationError(f"{type(config).__name__} does not tell how wide the model's vectors are")
