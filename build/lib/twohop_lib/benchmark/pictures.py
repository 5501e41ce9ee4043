"""Reading a picture from disk, whoever made it."""

from __future__ import annotations

import os
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from twohop_lib.errors import TwohopError

#: Pixel formats only: Pillow would hand others (EPS) to an outside program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
# Damage and size are told once, below. For good: pictures are read in threads, and the filters of
# warnings are all threads'.
warnings.filterwarnings("ignore", module=r"PIL\.")


def locate(folder: Path, image: str) -> Path:
    """The file of ``image`` in ``folder``, in whichever Unicode normal form its name is there.

    macOS takes names apart (NFD) and nobody else does, so a table's name and its file's may differ
    in what nobody sees. Where no such file exists, the path as it was given.
    """
    at = folder
    for part in Path(image).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        at = next((at / form for form in forms if os.path.lexists(at / form)), at / part)
    return at


def read(file: Path) -> Image.Image:
    """Decode a picture whole (RGB, upright, transparency on white).

    Raises:
        TwohopError: the file is missing, too large, cannot be decoded, or shows nothing (a single
            pixel, or all transparent).
    """
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if picture.width * picture.height == 1:
                raise TwohopError("has a single pixel; replace it by the whole picture.")
            ImageOps.exif_transpose(picture, in_place=True)  # a copy may be 200 MB
            return _rgb(_eight_bits(picture))
    except TwohopError as error:
        raise TwohopError(f"{file} {error}") from error
    except FileNotFoundError as error:
        raise TwohopError(f"{file} does not exist; put the picture there.") from error
    except Image.DecompressionBombError as error:
        raise TwohopError(
            f"{file} has more than {MAX_PIXELS:,} pixels; make the picture smaller."
        ) from error
    except Exception as error:  # decoders raise anything on damaged files
        raise TwohopError(
            f"{file} cannot be read as a picture; replace it by a sound {', '.join(FORMATS[:-1])} "
            f"or {FORMATS[-1]} file."
        ) from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8 (Pillow would cut it off at 255, so show it white)."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):  # nobody can tell which number is white
        raise TwohopError("has pixels of 32 bits; save it with 8 bits a channel.")
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    if picture.getextrema()[3][1] == 0:
        raise TwohopError("is transparent all over; save it with what it shows.")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")
