"""An adapter whose models take no time: what is left is the worker's own.

`declared` makes it known the way a plug-in package does, by an entry point, without anything being installed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.batching import InstantModel
from legit_embedding.errors import EmbeddingError
from legit_embedding.models.base import InputLimits
from legit_embedding.models.catalog import ModelSpec
from legit_embedding.values import Options, Payload, Prepared

PACKAGE = "legit_benchmark_instant-1.0.dist-info"


class InstantAdapter:
    """`adapter = "instant"` in models.toml."""

    modality = "text"

    def load(self, spec: ModelSpec, limits: InputLimits) -> "InstantText":  # noqa: ARG002  it decodes nothing
        return InstantText(spec.key)


class InstantText(InstantModel):
    """The model of `benchmarks.batching` as the whole worker needs it."""

    accepts = frozenset({"text"})
    prepare_chunk = 64
    prepared_nbytes = 1024

    def __init__(self, name: str) -> None:
        self.info = replace(InstantModel.info, name=name)

    def fingerprint(self, options: Options) -> str:
        return f"instant:{options.dimensions}"

    def prepare(self, payloads: Sequence[Payload], options: Options) -> list[Prepared | EmbeddingError]:  # noqa: ARG002
        return [Prepared(data=None, tokens=1, nbytes=self.prepared_nbytes) for _ in payloads]

    def close(self) -> None:
        """Nothing is held."""


def declared(folder: Path) -> dict[str, str]:
    """What a worker's environment needs to find the adapter and a models.toml that names it; both lie in `folder`."""
    package = folder / PACKAGE
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: legit-benchmark-instant\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[legit_embedding.models]\ninstant = benchmarks.instant:InstantAdapter\n")
    models = folder / "models.toml"
    models.write_text('[defaults]\ntext = "instant"\n\n[models.instant]\nadapter = "instant"\n')
    path = f"{folder}:{Path(__file__).parent.parent}"
    return {"PYTHONPATH": path, "LEGIT_MODELS": str(models), "LEGIT_PRELOAD": "instant"}
