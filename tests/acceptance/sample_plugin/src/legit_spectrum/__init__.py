"""Embeds mono 16-bit WAV recordings: the mean energy in bands of their spectrum, on a logarithmic scale."""

import io
import wave
from collections.abc import Sequence

import numpy as np

from legit_embedding.errors import ConfigurationError, EmbeddingError, UndecodableError
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.models.vectors import finalize, fingerprint
from legit_embedding.values import BatchLimits, ModelInfo, Options, Outcome, Payload, Prepared

FRAME = 512
MAX_SECONDS = 30
MAX_RATE = 48_000


class SpectrumAdapter:
    """`adapter = "spectrum"` in models.toml; `bands` (default 32) is its own key there."""

    modality = "audio"

    def load(self, spec: ModelSpec, limits: InputLimits) -> "SpectrumModel":
        """There are no weights; `limits` concern images."""
        bands = spec.options.get("bands", 32)
        if not isinstance(bands, int) or not 1 <= bands <= FRAME // 2:
            raise ConfigurationError(f"models.{spec.key}.bands must be a number from 1 to {FRAME // 2}, not {bands!r}")
        return SpectrumModel(spec, bands)


class SpectrumModel:
    """A loaded model, as `legit_embedding.models.base.EmbeddingModel` has it."""

    accepts = frozenset({"bytes"})
    prepare_chunk = 1
    prepared_nbytes = MAX_SECONDS * MAX_RATE * 4

    def __init__(self, spec: ModelSpec, bands: int) -> None:
        self.info = ModelInfo(
            name=spec.key,
            adapter="spectrum",
            modality="audio",
            dim=bands,
            device="cpu",
            dtype="float32",
            nbytes=0,
            limits=BatchLimits(max_items=spec.max_items or 16),
        )

    def fingerprint(self, options: Options) -> str:
        return fingerprint(adapter="spectrum", version=1, bands=self.info.dim, frame=FRAME, options=options)

    def prepare(self, payloads: Sequence[Payload], options: Options) -> list[Prepared | EmbeddingError]:
        return [self._decode(payload) for payload in payloads]

    def _decode(self, payload: Payload) -> Prepared | EmbeddingError:
        try:
            with wave.open(io.BytesIO(payload)) as recording:
                if recording.getnchannels() != 1 or recording.getsampwidth() != 2:
                    return UndecodableError("data: the recording must be mono with 16 bits a sample")
                raw = recording.readframes(MAX_SECONDS * recording.getframerate())
        except (wave.Error, EOFError) as error:
            return UndecodableError(f"data: no WAV recording: {error}")
        samples = np.frombuffer(raw, "<i2").astype(np.float32) / 32768
        if len(samples) < FRAME:
            return UndecodableError(f"data: the recording has {len(samples)} samples; at least {FRAME} are needed")
        return Prepared(data=samples, tokens=1, nbytes=samples.nbytes)

    def forward(self, batch: Sequence[Prepared]) -> np.ndarray:
        return np.stack([self._energies(item.data) for item in batch])

    def _energies(self, samples: np.ndarray) -> np.ndarray:
        frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME) * np.hanning(FRAME)
        power = (np.abs(np.fft.rfft(frames, axis=1)) ** 2).mean(axis=0)[1:]
        bands = np.array([band.sum() for band in np.array_split(power, self.info.dim)])
        return np.log1p(bands).astype(np.float32)

    def finish(self, raw: np.ndarray, options: Sequence[Options]) -> list[Outcome]:
        return finalize(raw, options)

    def close(self) -> None:
        """Nothing is held."""
