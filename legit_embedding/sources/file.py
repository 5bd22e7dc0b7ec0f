"""Images in files, under the roots that the settings allow. Blocking: called on a thread."""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from legit_embedding.errors import (
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnavailableError,
)

NOT_FOUND = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
NOT_REGULAR = frozenset({errno.EISDIR, errno.ENXIO, errno.ENODEV})
NOT_PERMITTED = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})


def resolve_allowed(path: str, roots: Sequence[str | Path], *, setting: str) -> Path:
    """`path` with every link followed, if it lies under one of `roots` then.

    Raises:
        SourceNotAllowedError: it does not, it is not absolute, or there are no roots; names `setting`.
    """
    if not roots:
        raise SourceNotAllowedError(f"{path!r:.200}: no folder is allowed; the worker's operator may set {setting}")
    if "\0" in path or not Path(path).is_absolute():
        raise SourceNotAllowedError(f"{path!r:.200} is not an absolute path")
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: a loop of links, up to Python 3.12. ValueError: no file can have that name.
        raise SourceNotAllowedError(f"{path!r:.200} cannot be resolved: {type(error).__name__}") from error
    if not any(resolved.is_relative_to(Path(root).resolve()) for root in roots):
        raise SourceNotAllowedError(f"{path!r:.200} is under none of the folders that {setting} allows")
    return resolved


def read_regular_file(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file; `path` is resolved already, so its last part must be no link.

    Raises:
        SourceNotFoundError, SourceNotAllowedError, SourceTooLargeError, SourceUnavailableError: as their names say.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _not_regular(path)
            if found.st_size > max_bytes:
                raise SourceTooLargeError(
                    f"{_shown(path)} has {found.st_size:,} bytes, more than LEGIT_MAX_SOURCE_BYTES ({max_bytes:,})"
                )
            content = file.read(found.st_size + 1)
    except OSError as error:
        raise translate_os_error(error, path) from error
    if len(content) > found.st_size:
        raise SourceUnavailableError(f"{_shown(path)} is being written")
    return content


def _open_at_once(path: str, flags: int) -> int:
    # NONBLOCK, so that a FIFO cannot hold the thread; NOFOLLOW, so that no link is followed that was put there since
    # the path was resolved.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def translate_os_error(
    error: OSError, path: Path
) -> SourceNotFoundError | SourceNotAllowedError | SourceUnavailableError:
    """What an `OSError` of reading `path` means for the item."""
    if error.errno in NOT_FOUND:
        return SourceNotFoundError(f"{_shown(path)}: no such file")
    if error.errno in NOT_REGULAR:
        return _not_regular(path)
    if error.errno in NOT_PERMITTED:
        return SourceNotAllowedError(f"{_shown(path)}: the worker may not read it ({error.strerror})")
    return SourceUnavailableError(f"{_shown(path)}: {error.strerror or error}")


def file_nbytes(path: str, roots: Sequence[str | Path]) -> int | None:
    """Its size now, None where that cannot be told; for reserving memory, not for deciding anything.

    Only what is spelt as a path under one of `roots` is looked at: elsewhere a message could name a dead mount, where
    looking takes for ever.
    """
    spelt = os.path.normpath(path)
    if not any(Path(spelt).is_relative_to(root) for root in roots):
        return None
    try:
        return Path(spelt).stat().st_size
    except (OSError, ValueError):
        return None


def _not_regular(path: Path) -> SourceNotAllowedError:
    return SourceNotAllowedError(f"{_shown(path)} is not a regular file")


def _shown(path: Path) -> str:
    return f"{str(path)!r:.200}"
