"""Files: only regular ones, only under the roots, never more than the limit, and never a thread that hangs."""

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from legit_embedding.errors import (
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
    SourceUnavailableError,
)
from legit_embedding.sources.file import file_nbytes, read_regular_file, resolve_allowed, translate_os_error

pytestmark = pytest.mark.timeout(20)

SETTING = "LEGIT_ALLOWED_ROOTS"


@pytest.fixture
def root(tmp_path):
    """An allowed folder with one file, beside a forbidden folder with another."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "a.jpg").write_bytes(b"allowed")
    (tmp_path / "rootless").mkdir()
    (tmp_path / "rootless" / "b.jpg").write_bytes(b"forbidden")
    return tmp_path / "root"


def read(path, *roots, max_bytes=1000):
    return read_regular_file(resolve_allowed(str(path), roots, setting=SETTING), max_bytes=max_bytes)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# -- which paths -------------------------------------------------------------------------------------------------------


def test_a_file_under_a_root_is_read(root):
    assert read(root / "sub" / "a.jpg", root) == b"allowed"
    assert read(root / "sub" / "a.jpg", Path("/nowhere"), str(root) + "/") == b"allowed"


def test_without_roots_nothing_is_read_and_the_setting_is_named(root):
    with pytest.raises(SourceNotAllowedError, match=SETTING):
        read(root / "sub" / "a.jpg")


@pytest.mark.parametrize(
    "spelling",
    [
        "{root}/../rootless/b.jpg",
        "{root}/sub/../../rootless/b.jpg",
        "{root}less/b.jpg",
        "/etc/passwd",
        "/",
        "{root}/../../../../../../../../../../etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
        "/proc/self/cwd/pyproject.toml",
    ],
)
def test_a_path_outside_the_roots_is_refused(root, spelling):
    with pytest.raises(SourceNotAllowedError, match=SETTING):
        read(spelling.format(root=root), root)


@pytest.mark.parametrize("path", ["a.jpg", "./a.jpg", "../a.jpg", "~/a.jpg", "", "file:///etc/passwd", "/etc\0/a.jpg"])
def test_a_path_that_is_not_absolute_is_refused(root, path):
    with pytest.raises(SourceNotAllowedError, match="not an absolute path"):
        read(path, root)


def test_a_name_that_no_file_can_have_is_refused(root):
    with pytest.raises(SourceNotAllowedError, match="cannot be resolved"):
        read(f"{root}/\ud800.jpg", root)


def test_dots_inside_a_root_are_fine(root):
    assert read(root / "sub" / ".." / "." / "sub" / "a.jpg", root) == b"allowed"


@pytest.mark.parametrize("target", ["{outside}/b.jpg", "../../rootless/b.jpg", "/etc/passwd"])
def test_a_link_out_of_the_root_is_refused(root, target):
    (root / "sub" / "link").symlink_to(target.format(outside=root.parent / "rootless"))
    with pytest.raises(SourceNotAllowedError, match=SETTING):
        read(root / "sub" / "link", root)


def test_a_folder_that_links_out_of_the_root_is_refused(root):
    (root / "door").symlink_to(root.parent / "rootless")
    with pytest.raises(SourceNotAllowedError, match=SETTING):
        read(root / "door" / "b.jpg", root)


def test_links_within_the_root_and_to_the_root_are_followed(root):
    (root / "link").symlink_to("sub/a.jpg")
    (root.parent / "alias").symlink_to(root)
    assert read(root / "link", root) == b"allowed"
    assert read(root.parent / "alias" / "link", root) == b"allowed"
    assert read(root / "link", root.parent / "alias") == b"allowed"


def test_a_loop_of_links_is_refused(root):
    (root / "one").symlink_to(root / "two")
    (root / "two").symlink_to(root / "one")
    with pytest.raises(SourceNotAllowedError):
        read(root / "one", root)


def test_a_link_put_there_after_the_path_was_resolved_is_not_followed(root):
    path = resolve_allowed(str(root / "late.jpg"), [root], setting=SETTING)
    path.symlink_to(root.parent / "rootless" / "b.jpg")
    with pytest.raises(SourceNotAllowedError, match="may not read"):
        read_regular_file(path, max_bytes=1000)


# -- which files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.jpg", "sub/a.jpg/deeper", "x" * 300])
def test_a_file_that_is_not_there_is_not_found(root, name):
    with pytest.raises(SourceNotFoundError, match="no such file"):
        read(f"{root}/{name}", root)


def test_a_fifo_does_not_hold_the_thread(root):
    os.mkfifo(root / "pipe")
    with pytest.raises(SourceNotAllowedError, match="not a regular file"):
        read(root / "pipe", root)


def test_a_fifo_with_a_writer_is_refused_too(root):
    os.mkfifo(root / "pipe")
    writer = os.open(root / "pipe", os.O_RDWR)
    try:
        os.write(writer, b"data")
        with pytest.raises(SourceNotAllowedError, match="not a regular file"):
            read(root / "pipe", root)
    finally:
        os.close(writer)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_refused(device):
    with pytest.raises(SourceNotAllowedError, match="not a regular file"):
        read(device, "/dev")


def test_a_socket_is_refused(root, monkeypatch):
    monkeypatch.chdir(root)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(SourceNotAllowedError, match="not a regular file"):
            read(root / "s", root)


def test_a_folder_is_refused_for_good_and_leaves_nothing_open(root):
    """For good: trying again would not make it a file."""
    before = open_descriptors()
    for folder in (root, root / "sub", f"{root}/sub/"):
        with pytest.raises(SourceNotAllowedError, match="not a regular file"):
            read(folder, root)
    assert open_descriptors() == before


def test_the_limit_is_exact(root):
    (root / "b").write_bytes(b"x" * 100)
    assert len(read(root / "b", root, max_bytes=100)) == 100
    with pytest.raises(SourceTooLargeError, match="100 bytes, more than LEGIT_MAX_SOURCE_BYTES"):
        read(root / "b", root, max_bytes=99)


def test_a_huge_file_is_refused_without_being_read(root):
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SourceTooLargeError):
        read(root / "huge", root)


def test_an_empty_file_is_read_as_it_is(root):
    (root / "empty").touch()
    assert read(root / "empty", root) == b""


def test_a_file_that_grows_meanwhile_is_tried_again_and_never_cut(root, monkeypatch):
    """Half an image would be called broken, for good."""
    found = (root / "sub" / "a.jpg").stat()
    shorter = SimpleNamespace(st_mode=found.st_mode, st_size=found.st_size - 1)
    monkeypatch.setattr(os, "fstat", lambda _: shorter)
    with pytest.raises(SourceUnavailableError, match="is being written"):
        read(root / "sub" / "a.jpg", root)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, SourceNotAllowedError),
        (errno.EPERM, SourceNotAllowedError),
        (errno.ELOOP, SourceNotAllowedError),
        (errno.EISDIR, SourceNotAllowedError),
        (errno.ENXIO, SourceNotAllowedError),
        (errno.ENOENT, SourceNotFoundError),
        (errno.ENOTDIR, SourceNotFoundError),
        (errno.EIO, SourceUnavailableError),
        (errno.ESTALE, SourceUnavailableError),
        (errno.EMFILE, SourceUnavailableError),
    ],
)
def test_what_may_pass_is_transient_and_what_stays_is_not(root, monkeypatch, number, kind):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    path = resolve_allowed(str(root / "sub" / "a.jpg"), [root], setting=SETTING)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(kind) as caught:
            read_regular_file(path, max_bytes=10)
    assert type(caught.value) is kind
    assert "a.jpg" in str(caught.value)


def test_a_long_path_makes_no_long_error(root):
    path = f"{root}/{'a/' * 100_000}b"
    for roots in ([], [root], ["/nowhere"]):
        with pytest.raises((SourceNotAllowedError, SourceNotFoundError)) as caught:
            read(path, *roots)
        assert len(str(caught.value)) < 400
    assert len(str(translate_os_error(OSError(errno.EIO, "x"), Path(path)))) < 400


# -- how much ----------------------------------------------------------------------------------------------------------


def test_the_size_is_told_for_a_file_under_a_root(root):
    assert file_nbytes(str(root / "sub" / "a.jpg"), [root]) == 7
    assert file_nbytes(f"{root}/./sub/../sub/a.jpg", [str(root)]) == 7


def test_a_path_elsewhere_is_not_even_looked_at(root, monkeypatch):
    """It could lie on a mount that answers never, and this runs on the loop."""

    def look(*_, **__):
        raise AssertionError("looked at")

    monkeypatch.setattr(Path, "stat", look)
    for path in (root.parent / "rootless" / "b.jpg", root / ".." / "rootless" / "b.jpg", "a.jpg", "/"):
        assert file_nbytes(str(path), [root]) is None
    assert file_nbytes(str(root / "sub" / "a.jpg"), []) is None


@pytest.mark.parametrize("name", ["none.jpg", "a\0b", "\ud800", "x" * 300])
def test_a_size_that_cannot_be_told_is_none(root, name):
    assert file_nbytes(f"{root}/{name}", [root]) is None
