"""Texts to token ids, on any number of threads at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from legit_embedding.errors import ConfigurationError

MARGIN_BYTES = 64

EXCERPT_CHARACTERS_A_TOKEN = 8
"""A text is tokenised only as far as the model may need it: first so many characters for each token of its limit."""

EXCERPT_GROWTH = 4
"""How much more is taken where that was too short."""

MARGIN_TOKENS = 64
"""The cut falls at least so many tokens before an excerpt's end, where the whole text may be split otherwise."""

CHARACTERS_AT_ONCE = 256 * 1024
"""A tokenizer takes about a hundred bytes a character while it works."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text: its token ids with the special ones, shape (length,); `types` where the model takes token types.

    `prompt` says how many of the first tokens are the prompt's.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int32] | None
    prompt: int

    @property
    def nbytes(self) -> int:
        """What the arrays hold."""
        return self.ids.nbytes + (0 if self.types is None else self.types.nbytes)


@dataclass(frozen=True, slots=True)
class TooManyTokens:
    """A text that was not to be cut, and is `count` tokens long, or longer where it was not counted to its end."""

    count: int
    exact: bool


class TextEncoder:
    """A fast tokenizer's own engine, set up once and never changed again.

    The transformers wrapper sets truncation and padding on the engine before each call, which fails as soon as two
    threads do it at once; the engine itself is safe to share.
    """

    def __init__(self, tokenizer: Any, *, limit: int, lower_case: bool) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigurationError(
                f"{type(tokenizer).__name__} is no fast tokenizer; the model's folder needs a tokenizer.json"
            )
        engine: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        engine.no_padding()
        engine.no_truncation()
        if lower_case:
            own = [] if engine.normalizer is None else [engine.normalizer]
            engine.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        self.limit = limit
        self.pads_left = tokenizer.padding_side == "left"
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.pad_type = int(tokenizer.pad_token_type_id)
        self._engine = engine
        self._side = tokenizer.truncation_side
        self._room = limit - engine.num_special_tokens_to_add(is_pair=False)
        if self._room < 1:
            raise ConfigurationError(f"a limit of {limit} tokens leaves no room beside the special ones")
        self._with_types = "token_type_ids" in tokenizer.model_input_names
        self._special = frozenset(tokenizer.all_special_ids)

    @property
    def tokens_nbytes(self) -> int:
        """No text's `Tokens` hold more."""
        arrays = 2 if self._with_types else 1
        return self.limit * np.dtype(np.int32).itemsize * arrays + MARGIN_BYTES

    def encode(self, texts: Sequence[str], *, truncate: bool, prompt: int = 0) -> list[Tokens | TooManyTokens]:
        """Each text as tokens; one above the limit is cut, or refused where `truncate` is false.

        Memory is bounded whatever the texts' lengths: of a long one no more is tokenised than what decides.
        """
        found: list[Tokens | TooManyTokens] = []
        first = self.limit * EXCERPT_CHARACTERS_A_TOKEN
        for group in _groups(texts, first):
            excerpts = [self._excerpt(text, first) for text in group]
            encodings = self._engine.encode_batch_fast(excerpts, add_special_tokens=False)
            for text, excerpt, encoding in zip(group, excerpts, encodings, strict=True):
                found.append(self._finish(*self._enough(text, excerpt, encoding), truncate=truncate, prompt=prompt))
        return found

    def prompt_length(self, prompt: str) -> int:
        """How many of a text's first tokens a prompt before it makes; a special token that would follow does not count.

        The prompt is measured by itself, as sentence-transformers does it.
        """
        ids = self._engine.encode(prompt).ids[: self.limit]
        return len(ids) - 1 if ids and ids[-1] in self._special else len(ids)

    def _excerpt(self, text: str, characters: int) -> str:
        """The end of `text` that is kept when it is cut."""
        if len(text) <= characters:
            return text
        return text[:characters] if self._side == "right" else text[-characters:]

    def _enough(self, text: str, excerpt: str, encoding: Any) -> tuple[Any, bool]:
        """Tokens of `text` beyond the limit with a margin, or all of them; and whether they are all."""
        while len(excerpt) < len(text) and len(encoding) < self._room + MARGIN_TOKENS:
            excerpt = self._excerpt(text, len(excerpt) * EXCERPT_GROWTH)
            encoding = self._engine.encode_batch_fast([excerpt], add_special_tokens=False)[0]
        return encoding, len(excerpt) == len(text)

    def _finish(self, encoding: Any, whole_text: bool, *, truncate: bool, prompt: int) -> Tokens | TooManyTokens:
        if len(encoding) > self._room:
            if not truncate:
                return TooManyTokens(len(encoding) + self.limit - self._room, exact=whole_text)
            encoding.truncate(self._room, direction=self._side)
        whole = self._engine.post_process(encoding)
        types = np.array(whole.type_ids, np.int32) if self._with_types else None
        return Tokens(np.array(whole.ids, np.int32), types, prompt)


def _groups(texts: Sequence[str], longest: int) -> Iterator[Sequence[str]]:
    """Runs of texts that count no more than `CHARACTERS_AT_ONCE` together, each as `longest` at most."""
    start = characters = 0
    for place, text in enumerate(texts):
        size = min(len(text), longest)
        if place > start and characters + size > CHARACTERS_AT_ONCE:
            yield texts[start:place]
            start, characters = place, 0
        characters += size
    if start < len(texts):
        yield texts[start:]
