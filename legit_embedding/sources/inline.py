"""What is inside the message itself: texts, and images as base64 or a `data:` URL. Pure."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from legit_embedding.errors import InvalidItemError, SourceTooLargeError

WHITESPACE = b" \t\r\n"
SCHEME = "data:"
BASE64 = ";base64"


def decoded_nbytes(data: str) -> int:
    """No more bytes than this come out of `decode_inline`; cheap, and a little too much."""
    if _is_data_url(data):
        header, _, body = data.partition(",")
        if not header.rstrip().lower().endswith(BASE64):
            return len(body) if body.isascii() else 4 * len(body)
    return len(data) * 3 // 4 + 3


def checked_text(text: str, *, max_bytes: int) -> str:
    """`text`, if its UTF-8 has at most `max_bytes`.

    Raises:
        SourceTooLargeError: it has more.
    """
    if len(text) * 4 > max_bytes:  # no character has more than four bytes: few texts need to be counted
        nbytes = len(text.encode())
        if nbytes > max_bytes:
            raise SourceTooLargeError(f"text: {nbytes:,} bytes are more than LEGIT_MAX_SOURCE_BYTES ({max_bytes:,})")
    return text


def decode_inline(data: str, *, max_bytes: int) -> bytes:
    """The bytes that `data` encodes: base64 of the standard alphabet, line breaks allowed, or a `data:` URL.

    Raises:
        InvalidItemError: neither.
        SourceTooLargeError: more than `max_bytes`.
    """
    if not _is_data_url(data):
        return _decode_base64(data, max_bytes)
    # RFC 2397: data:[<type>][;base64],<data>
    header, comma, body = data.partition(",")
    if not comma:
        raise InvalidItemError("data: a `data:` URL needs a comma between its type and its content")
    content = unquote_to_bytes(body)
    if header.rstrip().lower().endswith(BASE64):
        return _decode_base64(content.decode("latin-1"), max_bytes)
    _require_size(len(content), max_bytes)
    return content


def _is_data_url(data: str) -> bool:
    return data[: len(SCHEME)].lower() == SCHEME


def _decode_base64(text: str, max_bytes: int) -> bytes:
    try:
        packed = text.encode("ascii")
        if not packed.isalnum():
            packed = packed.translate(None, WHITESPACE)
        _require_size(len(packed) * 3 // 4 - packed[-2:].count(b"="), max_bytes)  # before it takes that memory
        return base64.b64decode(packed, validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        hint = "; it looks like the URL-safe alphabet, use the standard one" if {"-", "_"} & set(text) else ""
        raise InvalidItemError(f"data: not valid base64 ({error}){hint}") from error


def _require_size(nbytes: int, max_bytes: int) -> None:
    if nbytes > max_bytes:
        raise SourceTooLargeError(f"data: {nbytes:,} bytes are more than LEGIT_MAX_SOURCE_BYTES ({max_bytes:,})")
