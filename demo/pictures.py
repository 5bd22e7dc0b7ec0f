"""Twelve small pictures, drawn rather than shipped."""

from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (320, 240)
COLOURS = {"red": (200, 40, 40), "green": (40, 160, 70), "blue": (40, 80, 200), "gold": (225, 180, 40)}
SHAPES = ("circle", "square", "stripes")


def draw(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    """One shape in one colour on a light ground."""
    image = Image.new("RGB", SIZE, (245, 242, 235))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((80, 40, 240, 200), fill=colour)
    elif shape == "square":
        pen.rectangle((90, 50, 230, 190), fill=colour)
    else:
        for left in range(0, SIZE[0], 40):
            pen.rectangle((left, 0, left + 20, SIZE[1]), fill=colour)
    return image


def save_all(folder: Path) -> int:
    """Writes a JPEG for each shape and colour into `folder`; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for shape in SHAPES:
        for name, colour in COLOURS.items():
            draw(shape, colour).save(folder / f"{name}-{shape}.jpg", quality=90)
    return len(SHAPES) * len(COLOURS)
