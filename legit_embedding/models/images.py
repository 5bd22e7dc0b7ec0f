"""Encoded images: from bytes to a Pillow image, within the limits, whatever the bytes are.

Orientation tags (EXIF) are not applied here, because open_clip's own transform does not apply them either.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import Image, UnidentifiedImageError

from legit_embedding.errors import EmbeddingError, SourceTooLargeError, UndecodableError

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that are decoded, as far as the installed Pillow has them: each further one is a C decoder more."""

SETTING = "LEGIT_MAX_PIXELS"

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The image, of which only the header has been read; of an animation the first frame.

    Raises:
        UndecodableError: not an image of an allowed format, or its header is broken.
        SourceTooLargeError: the header tells of more than `max_pixels`.
    """
    _hush_pillow()
    try:
        with _broken_bytes_are_undecodable():
            image = Image.open(io.BytesIO(data), formats=allowed_formats())
    except UndecodableError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise SourceTooLargeError(_too_large(max_pixels)) from error.__cause__
        raise
    if image.width * image.height > max_pixels:
        raise SourceTooLargeError(f"the image is {image.width} x {image.height}: {_too_large(max_pixels)}")
    return image


def load_pixels(image: Image.Image) -> None:
    """Decodes `image` in place.

    Raises:
        UndecodableError: the data is broken or ends too early.
    """
    with _broken_bytes_are_undecodable():
        image.load()


@cache
def allowed_formats() -> tuple[str, ...]:
    """Those of `ALLOWED_FORMATS` that the installed Pillow can decode."""
    Image.init()
    return tuple(name for name in ALLOWED_FORMATS if name in Image.OPEN)


class PixelBudget:
    """No more pixels than `limit` are decoded at once, however many threads prepare; first come, first served.

    This bounds what decoding takes for a moment: it is many times what is kept of an image, so it is not reserved
    for each image that waits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Waits until `pixels` are free and holds them; more than the whole limit counts as the whole limit."""
        wanted = min(pixels, self._limit)
        with (
            self._turn,
            self._changed,
        ):  # whoever waits keeps the turn, so that small images do not overtake a large one
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()

    def __repr__(self) -> str:
        return f"<PixelBudget {self._limit - self._free} of {self._limit} pixels>"


def _hush_pillow() -> None:
    """Pillow's remarks on broken metadata and large images go nowhere: what matters of them becomes an item's error.

    `warnings.catch_warnings` is no help here: it swaps the filters of the whole process, and two threads that leave it
    in the wrong order leave them swapped. So one narrow filter is put in place, and again where somebody removed it.
    """
    if _IGNORE_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_IGNORE_PILLOW[3].pattern)


@contextmanager
def _broken_bytes_are_undecodable() -> Iterator[None]:
    try:
        yield
    except (EmbeddingError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UndecodableError(
            f"not an image of an allowed format ({', '.join(allowed_formats())}), or its header is broken"
        ) from error
    except Exception as error:  # over foreign bytes a decoder may raise anything, and all of it means the same
        raise UndecodableError(f"the image is broken: {str(error) or type(error).__name__}") from error


def _too_large(max_pixels: int) -> str:
    own = None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    if own is not None and own < max_pixels:
        return f"{SETTING} allows {max_pixels:,} pixels, but Pillow opens none above {own:,}"
    return f"more pixels than {SETTING} ({max_pixels:,}) allows"
