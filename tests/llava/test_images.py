from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from llava.errors import BadInput
from llava.images import Drawing, open_rgb

# What Pillow writes and reads back in each mode, and the file type that holds it.
FILES = {
    "1": "png", "L": "png", "LA": "png", "P": "png", "RGB": "png", "RGBA": "png", "I;16": "png", "I": "tiff",
    "F": "tiff", "CMYK": "jpg", "YCbCr": "jpg", "LAB": "tiff",
}  # fmt: skip


@pytest.mark.parametrize(("mode", "suffix"), FILES.items())
def test_every_mode_opens_as_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    """Whatever an image file holds comes out as RGB of the same size, without a warning."""
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (9, 4)).save(path)

    opened = open_rgb(path)

    assert (opened.mode, opened.size) == ("RGB", (9, 4))


def test_a_palette_with_transparent_entries_opens_without_a_warning(tmp_path: Path) -> None:
    """Pillow warns about such files on the direct way to RGB; a warning is an error here."""
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))

    assert open_rgb(tmp_path / "a.png").getpixel((0, 0)) == (10, 20, 30)


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    """An animation is its first picture."""
    first, second = Image.new("RGB", (3, 3), (255, 0, 0)), Image.new("RGB", (3, 3), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])

    assert open_rgb(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I;16", "tiff"), ("I;16B", "tiff")])
def test_16_bits_become_their_upper_eight(tmp_path: Path, mode: str, suffix: str) -> None:
    """As in a PNG of 16-bit colours; Pillow's own way would make all but the darkest white."""
    image = Image.new(mode, (6, 1))
    for x, value in enumerate([0, 255, 256, 0x4321, 0x8000, 0xFFFF]):
        image.putpixel((x, 0), value)
    image.save(tmp_path / f"a.{suffix}")

    opened = open_rgb(tmp_path / f"a.{suffix}")

    assert [opened.getpixel((x, 0)) for x in range(6)] == [(value,) * 3 for value in (0, 0, 1, 0x43, 0x80, 0xFF)]


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I;16", "tiff"), ("I;16B", "tiff")])
@pytest.mark.parametrize("highest", [0, 1, 200, 255])
def test_16_bits_that_use_eight_stay_as_they_are(tmp_path: Path, mode: str, suffix: str, highest: int) -> None:
    """A file of 16 bits with values in 0..255 is as bright as one of 8 bits, as CLIPImageProcessor sees it."""
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), highest)
    image.save(tmp_path / f"a.{suffix}")

    opened = open_rgb(tmp_path / f"a.{suffix}")

    assert [opened.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (highest,) * 3]


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparent_pixels_have_the_colour_below(tmp_path: Path, kind: str) -> None:
    """Alpha is dropped, as by the original program; nothing is laid on white."""
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 127, 255)):
        image.putpixel((x, 0), (90, 90, 90, alpha))
    if kind == "P":
        image = image.convert("RGB").quantize(2)
        image.info["transparency"] = bytes([0, 0])
    image.convert(kind).save(tmp_path / "a.png")

    opened = open_rgb(tmp_path / "a.png")

    assert [opened.getpixel((x, 0)) for x in range(3)] == [(90, 90, 90)] * 3


@pytest.mark.parametrize(
    ("mode", "values"), [("I", (0, 256)), ("I", (-1, 9)), ("F", (0.0, 1.0)), ("F", (0.0, 1e9)), ("F", (-0.5, 200.0))]
)
def test_numbers_of_another_range_are_refused(tmp_path: Path, mode: str, values: tuple[float, float]) -> None:
    """32 bits say nothing of what is white: what is no 0 to 255 would be cut off there, or all black."""
    image = Image.new(mode, (2, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    image.save(tmp_path / "a.tiff")

    with pytest.raises(BadInput, match=rf"range 0 to 255, got {values[0]} to .* in 'a\.tiff'"):
        open_rgb(tmp_path / "a.tiff")


def test_orientation_is_left_alone(tmp_path: Path) -> None:
    """EXIF's "turn me" is not followed, as in the original."""
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)

    assert open_rgb(tmp_path / "a.jpg").size == (8, 4)


def test_a_file_that_vanished_is_bad_input(tmp_path: Path) -> None:
    """Between the check and the answer a file can go; that is said like any other bad image."""
    with pytest.raises(BadInput, match=r"readable to its end, got 'gone\.png'"):
        open_rgb(tmp_path / "gone.png")


def test_a_drawing_is_always_the_same_and_not_plain() -> None:
    """The same seed draws the same picture, another seed another; shapes are on it."""
    drawing = Drawing((30, 20), "RGB", seed=1)

    assert drawing.draw().tobytes() == drawing.draw().tobytes()
    assert drawing.draw().tobytes() != Drawing((30, 20), "RGB", seed=2).draw().tobytes()
    colours = drawing.draw().getcolors()
    assert colours is not None
    assert len(colours) > 2
    assert Drawing((30, 20), "CMYK", seed=1).draw().mode == "CMYK"
    assert open_rgb(Drawing((30, 20), "P", seed=1)).mode == "RGB"
