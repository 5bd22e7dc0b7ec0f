"""Decoding: what is allowed and whole becomes pixels, everything else an error of that image alone."""

import io
import struct
import threading
import warnings
import zlib

import pytest
from PIL import Image, ImageFile

from legit_embedding.errors import SourceTooLargeError, UndecodableError
from legit_embedding.models.images import PixelBudget, allowed_formats, load_pixels, open_image

AMPLE = 10**9


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(60, 40)):
    return Image.effect_noise(size, 80).convert(mode)


def png_header(width, height):
    """As much of a PNG as tells its size, and no pixel."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize("kind", allowed_formats())
def test_an_image_of_an_allowed_format_is_decoded(kind):
    image = open_image(encoded(noise("P" if kind == "GIF" else "RGB"), kind), max_pixels=AMPLE)
    load_pixels(image)
    assert image.size == (60, 40)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), max_pixels=AMPLE)
    load_pixels(image)
    assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PDF"])
def test_a_format_that_is_not_allowed_is_undecodable(kind):
    with pytest.raises(UndecodableError, match="JPEG, PNG"):
        open_image(encoded(noise(), kind), max_pixels=AMPLE)


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_foreign_bytes_are_undecodable(data):
    with pytest.raises(UndecodableError):
        load_pixels(open_image(data, max_pixels=AMPLE))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_file_that_ends_too_early_is_undecodable(kind):
    data = encoded(noise(size=(300, 200)), kind)
    with pytest.raises(UndecodableError):
        load_pixels(open_image(data[: len(data) // 2], max_pixels=AMPLE))


def test_the_header_alone_decides_about_too_many_pixels():
    with pytest.raises(SourceTooLargeError, match=r"200 x 100.*LEGIT_MAX_PIXELS \(19,999\)"):
        open_image(png_header(200, 100), max_pixels=19_999)
    assert open_image(png_header(200, 100), max_pixels=20_000).size == (200, 100)


def test_what_pillow_itself_refuses_as_a_bomb_is_too_large():
    with pytest.raises(SourceTooLargeError, match="LEGIT_MAX_PIXELS"):
        open_image(png_header(60_000, 60_000), max_pixels=100_000_000)
    with pytest.raises(SourceTooLargeError, match="Pillow opens none above"):
        open_image(png_header(60_000, 60_000), max_pixels=10**12)


def test_an_image_that_pillow_would_warn_of_is_opened_without_a_warning():
    """Between Pillow's own limit and its double; a warning would fail this test."""
    assert open_image(png_header(10_000, 9_500), max_pixels=AMPLE).size == (10_000, 9_500)


def test_no_warning_leaks_even_after_somebody_has_reset_the_filters():
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        assert open_image(png_header(10_000, 9_500), max_pixels=AMPLE).size == (10_000, 9_500)


def test_warnings_of_others_stay_as_they_were():
    open_image(encoded(noise(), "PNG"), max_pixels=AMPLE)
    with pytest.warns(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


def test_pillows_own_settings_are_left_alone():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    load_pixels(open_image(encoded(noise(), "JPEG"), max_pixels=AMPLE))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    image = open_image(encoded(noise(), "JPEG", exif=exif), max_pixels=AMPLE)
    load_pixels(image)
    assert image.size == (60, 40)


def holding(budget, pixels):
    """A thread that holds `pixels` until its event is set: (thread, entered, may leave)."""
    entered, leave = threading.Event(), threading.Event()

    def work():
        with budget.hold(pixels):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, entered, leave


def test_no_more_pixels_than_the_budget_are_held_and_nobody_overtakes():
    """A large image that waits is not passed by a small one for which there would be room."""
    budget = PixelBudget(100)
    first, held, let_first_go = holding(budget, 60)
    assert held.wait(10)
    large, large_entered, let_large_go = holding(budget, 90)
    while not budget._turn.locked():
        held.wait(0.001)
    small, small_entered, let_small_go = holding(budget, 10)
    assert not large_entered.is_set()
    assert not small_entered.is_set()
    assert repr(budget) == "<PixelBudget 60 of 100 pixels>"
    let_first_go.set()
    assert large_entered.wait(10)
    assert small_entered.wait(10)
    let_large_go.set()
    let_small_go.set()
    for thread in (first, large, small):
        thread.join(10)
    assert repr(budget) == "<PixelBudget 0 of 100 pixels>"


def test_more_pixels_than_the_whole_budget_are_let_in_alone():
    budget = PixelBudget(100)
    with budget.hold(1000):
        assert repr(budget) == "<PixelBudget 100 of 100 pixels>"


def test_pixels_are_given_back_after_an_error():
    budget = PixelBudget(100)
    with pytest.raises(UndecodableError), budget.hold(40):
        raise UndecodableError
    assert repr(budget) == "<PixelBudget 0 of 100 pixels>"
