"""Images of a sample as RGB pictures."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from prunebench.errors import MediaError, first_line
from prunebench.media.files import ImageFile, readable

if TYPE_CHECKING:
    from prunebench.calibration.samples import Sample

__all__ = ["MAX_PIXELS", "images_of", "load_image", "to_rgb"]

MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter of a gigabyte as RGB): a small file can claim any size, and is refused unread."""


def images_of(sample: Sample) -> list[Image.Image]:
    """The images of a sample in their order, RGB, upright.

    Raises:
        MediaError: one of them cannot be read.
    """
    return [load_image(source) for source in sample.images]


def load_image(source: np.ndarray | ImageFile) -> Image.Image:
    """One RGB picture from a file or from a uint8 array (height, width[, 1, 3 or 4]).

    Turned upright as its EXIF orientation says. Transparent parts become white, 16-bit grey is scaled to 8 bits (not
    clipped), CMYK and palettes are converted.

    Raises:
        MediaError: not an image, damaged, cut short, or too large.
    """
    if not isinstance(source, ImageFile):
        return _from_array(source)
    path = readable(source.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused just below, and of odd metadata
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise MediaError(f"{path} has {width} × {height} pixels, more than {MAX_PIXELS:,}: scale it down")
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path} claims more than {MAX_PIXELS:,} pixels: scale it down") from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{path} is not an image that can be read: convert it to PNG or JPEG") from error
    except MediaError as error:
        raise error if str(path) in str(error) else MediaError(f"{path}: {error}") from error
    except Exception as error:  # its decoders raise all kinds of exceptions on damaged files
        raise MediaError(f"{path} is damaged or cut short: {first_line(error)}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    array = np.asarray(array)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise MediaError(f"an image must be uint8 (height, width, 3), got {array.dtype} {array.shape}")
    if array.ndim == 3 and channels == 1:
        array = array[:, :, 0]
    return to_rgb(Image.fromarray(array))


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, by the rules of `load_image`.

    Raises:
        MediaError: grey values outside 16 bits.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits: 0 to 65535 becomes 0 to 255; Pillow's own conversion would clip at 255."""
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise MediaError("its grey values are not within 16 bits: convert it to 8 bits first")
    return np.rint(grey / 257.0).astype(np.uint8)
