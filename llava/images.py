"""Images from a folder, or drawn; opened when they are needed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from llava.errors import BadInput, shown

# CLIP scales the short side to 336 pixels before it crops: at this ratio that is 336 x 168,000, 170 MB of RGB.
MAX_ASPECT_RATIO = 500


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn each time it is opened, always the same. `size` is (width, height) in pixels."""

    size: tuple[int, int]
    mode: str
    seed: int

    def draw(self) -> Image.Image:
        """A few shapes on a plain ground, as a new Pillow image of `mode`."""
        dice = random.Random(self.seed)  # noqa: S311  # a picture, not a secret

        def colour() -> tuple[int, int, int]:
            return dice.randrange(256), dice.randrange(256), dice.randrange(256)

        width, height = self.size
        image = Image.new("RGB", self.size, colour())
        pencil = ImageDraw.Draw(image)
        for _ in range(6):
            left, top = dice.randrange(width), dice.randrange(height)
            box = (left, top, dice.randrange(left, width), dice.randrange(top, height))
            shape = pencil.ellipse if dice.random() < 0.5 else pencil.rectangle
            shape(box, fill=colour())
        return image.convert(self.mode)


ImageSource = Path | Drawing


def resolve_image(folder: Path, name: str) -> Path:
    """The file `name` inside `folder`, symbolic links followed.

    Raises BadInput if the folder is missing, or the name is absolute, leaves the folder or is not a file.
    """
    try:
        root = folder.resolve()
        if not root.is_dir():
            raise BadInput(f"the image folder must be an existing folder, got {shown(str(folder))}")
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(root):
            raise BadInput(f"an image must lie inside the image folder, got {shown(name)}")
        if not path.is_file():
            raise BadInput(f"an image must be an existing file in the image folder, got {shown(name)}")
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a NUL
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"an image must be a file in the image folder, got {shown(name)}: {error}") from error
    return path


def open_rgb(source: ImageSource) -> Image.Image:
    """The image (of several frames the first), fully decoded, as RGB. EXIF orientation is left alone.

    Values of 16 bits are cut to their upper eight; where none is over 255 they stay as they are, as CLIPImageProcessor
    takes them. Transparency is dropped, and the colour below it stays, as with the original program and transformers
    5.17 (5.23 lays a transparent image on white).

    Raises BadInput for an image that Pillow can't read, one over its pixel limit (`PIL.Image.MAX_IMAGE_PIXELS`), one
    more than `MAX_ASPECT_RATIO` times as long as wide, and 32-bit numbers of another range than 0 to 255.
    """
    if isinstance(source, Drawing):
        return source.draw().convert("RGB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, transparent palettes: no concern of the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                _check_shape(image)
                return _rgb(image)  # decodes it to the end
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput(
            f"an image must have at most {Image.MAX_IMAGE_PIXELS} pixels, got {shown(source.name)}: {error}"
        ) from error
    except BadInput as error:
        raise BadInput(f"{error} in {shown(source.name)}") from error
    except Exception as error:  # a broken file can raise almost anything in Pillow's decoders
        raise BadInput(f"an image must be readable to its end, got {shown(source.name)}: {error}") from error


def padded_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The image in the middle of a square of the colour `mean` (of red, green, blue; each in 0..1), as LLaVA pads it.

    Raises BadInput for a square over Pillow's pixel limit.
    """
    side = max(image.size)
    if Image.MAX_IMAGE_PIXELS is not None and side**2 > Image.MAX_IMAGE_PIXELS:
        raise BadInput(
            f"an image padded to a square must have at most {Image.MAX_IMAGE_PIXELS} pixels, got {image.size}"
        )
    red, green, blue = (int(255 * value) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _rgb(image: Image.Image) -> Image.Image:
    """The image as RGB; Pillow alone would cut values of more than 8 bits off at 255."""
    if image.mode.startswith("I;16"):
        image = image.convert("I")
        extrema: Any = image.getextrema()
        if extrema[1] > 255:
            image = image.point(lambda value: value / 256)
    elif image.mode in ("I", "F"):
        extrema = image.getextrema()  # of one band
        lowest, highest = extrema
        if not (lowest >= 0 and (highest == 0 or 1 < highest <= 255)):  # of 0 to 1, all would be black
            raise BadInput(f"an image of 32-bit numbers must use the range 0 to 255, got {lowest} to {highest}")
    return image.convert("RGB")


def _check_shape(image: Image.Image) -> None:
    if image.format == "EPS":  # Pillow would start Ghostscript on it
        raise BadInput("an image must be made of pixels, got EPS")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadInput(f"an image must be at most {MAX_ASPECT_RATIO} times as long as wide, got {image.size}")
