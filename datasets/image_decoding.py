"""Image decoding: the one function that turns an image file, of whatever kind, into 8-bit RGB pixels.

- 16-bit grey (PNG, TIFF, PGM) keeps its upper 8 bits, 12-bit TIFF likewise: 0..65535 become 256 equal steps,
  as Pillow does for 16-bit colour.
- Transparent images are composited on white; what lies under fully transparent pixels does not show.
- The orientation that EXIF states (photographs of phones) is applied.
- CMYK is converted without a colour profile, R = (255 - C)(255 - K) / 255; inverted inks as the Adobe marker
  of a JPEG announces them. Other colour profiles are ignored, as torchvision and mammoth do.

Refused by name, because no single right image can be told: animations and files of several pages, 32-bit and
floating-point pixels, CMYK in a JPEG without Adobe marker, images beyond `MAX_PIXELS`.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from engram.utils.errors import DataError

DECODER = 2  # of this file's rules: a new number makes every image that was decoded by older ones unread
MAX_PIXELS = 89_478_485  # of one image, 256 MiB as RGB: Pillow's own limit for a decompression bomb
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF
FULL_DEPTH = ("1", "L", "RGB")  # how Pillow stores samples of a PNG whose transparent colour it can find

# Pillow warns of damaged metadata, in several lines, and up to twice its limit it only warns of a bomb.
warnings.filterwarnings("ignore", module="PIL")
warnings.simplefilter("error", Image.DecompressionBombWarning)


def read_rgb(file: Path) -> Image.Image:
    """The image of a file, upright, in mode RGB.

    Raises `DataError`, with the path, for a file that is damaged, no image, or refused as above.
    """
    try:
        # not by its name: Pillow would map an uncompressed TIFF into memory and skew one that EXIF turns
        with open(file, "rb") as stream, Image.open(stream) as image:
            if reason := _refusal(image):
                raise DataError(f"{file}: {reason}")
            image.load()
            return _upright(image, _without_alpha(image))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{file}: {_too_large('its size')}") from None
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except Exception as error:  # parsing damaged bytes can raise anything
        raise DataError(f"{file}: not a readable image ({_reason(error)}); replace or remove it") from error


def _reason(error: Exception) -> str:
    """What is wrong with a file, in one line and without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "of no kind that is known"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _refusal(image: Image.Image) -> str | None:
    """Why an image that is opened, but not decoded yet, is not taken, and what to do; None if it is."""
    if image.width * image.height > MAX_PIXELS:
        return _too_large(f"{image.width}x{image.height} pixels")
    # a photograph in format MPO is a JPEG with previews behind it
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return "holds several images (an animation or pages); save the one that is meant as its own file"
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return f"pixels of mode '{image.mode}' (32 bits or signed) have no known range; save as 8 or 16 bit"
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        return "a CMYK JPEG without Adobe marker does not say whether its inks are inverted; save as RGB"
    tiles = getattr(image, "tile", ())
    depth = tiles[0][3] if tiles and image.format == "PNG" else None
    if "transparency" in image.info and image.mode != "P" and depth not in (None, *FULL_DEPTH):
        return f"a transparent colour in a PNG of '{depth}' is not supported; save with an alpha channel"
    return None


def _too_large(what: str) -> str:
    return f"{what} is beyond the {MAX_PIXELS:,} pixels that an image may have; scale it down"


def _without_alpha(image: Image.Image) -> Image.Image:
    """The decoded image in mode RGB, on white where it is transparent."""
    if image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Mode L from grey of more than 8 bits: the upper 8 of them."""
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITS_PER_SAMPLE, (16,))
    pixels = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO  # Pillow turns such images round in 8 bits only
    return Image.fromarray(255 - pixels if inverted else pixels)


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """`rgb` turned as the metadata of `image` says; metadata that are damaged say nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # parsing damaged bytes can raise anything; the pixels are whole
        return rgb
    return rgb.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else rgb
