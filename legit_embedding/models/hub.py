"""Models on the Hugging Face hub: their files in the local cache, or one clear sentence why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import tqdm

from legit_embedding.errors import ModelUnavailableError

SCHEME = "hf-hub:"


@dataclass(frozen=True, slots=True)
class Repository:
    """A model's repository; `revision` is a branch, a tag or a commit, None the repository's main branch."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None) -> "Repository":
        """`[hf-hub:]owner/name[@revision]`; a revision in `text` wins."""
        name, _, own = text.removeprefix(SCHEME).strip("/").partition("@")
        return cls(name, own or revision)

    def fetch(self, patterns: Sequence[str]) -> "Snapshot":
        """The folder that holds the repository's files of these patterns, downloaded where they are not yet cached.

        A pattern that nothing matches is no error.

        Raises:
            ModelUnavailableError: the hub or the repository cannot be reached and the cache does not have them.
        """
        try:
            folder = huggingface_hub.snapshot_download(
                self.name, revision=self.revision, allow_patterns=list(patterns), tqdm_class=_NoProgress
            )
        except errors.GatedRepoError as error:
            raise self._unavailable("its owner has to grant access first, and HF_TOKEN has to be set") from error
        except errors.RepositoryNotFoundError as error:
            raise self._unavailable("no such repository, or a private one, which needs HF_TOKEN") from error
        except errors.RevisionNotFoundError as error:
            raise self._unavailable("it has no such revision") from error
        except errors.LocalEntryNotFoundError as error:
            raise self._unavailable(
                "the hub cannot be reached and the cache does not have it; "
                "check the network, or set weights to a local folder"
            ) from error
        except Exception as error:  # the HTTP library below differs from version to version, and so do its errors
            raise self._unavailable(f"{type(error).__name__}: {error}") from error
        path = Path(folder)
        return Snapshot(path, Repository(self.name, path.name))

    def _unavailable(self, reason: str) -> ModelUnavailableError:
        return ModelUnavailableError(f"{self} cannot be had from {constants.ENDPOINT}: {reason}")

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder of files from the hub; `repository` is pinned to its commit, so that further files belong to these."""

    folder: Path
    repository: Repository


class _NoProgress(tqdm):  # type: ignore[misc]
    """No progress bar: a worker's log is no place for one, and the hub's own switch would be everybody's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})
