"""From an image as it is stored to the pixels that a crop needs of it.

A JPEG can be decoded to a half, a quarter or an eighth of its size at a fraction of the work: the inverse cosine
transform just leaves high frequencies out. Finding the coefficients in the file (entropy decoding) is not spared.

Must not know: crops, labels, torch.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vit24h.data.index import ImageSource

SHRINKS = (1, 2, 4, 8)
"""By how much decoding can divide a JPEG's size. libjpeg-turbo has fast code for these, not for those between."""

_JPEG = b"\xff\xd8\xff"
# What the two decoders make the same pixels of. The others, CMYK and YCCK, are converted as Pillow does it.
_COLOUR_SPACES = ("YCbCr", "Gray")

# At a fraction of the size libjpeg keeps the colour of these as fine as brightness. Where colour is coarser in one
# direction only, as in 4:2:2, it would get coarser still.
_SCALABLE = ("444", "420", "Gray")


class CorruptImageError(ValueError):
    """A file that holds no complete image. The message is the reason, without the path."""


class UnreadableImageError(CorruptImageError):
    """A file that the system does not give."""


class Picture:
    """An image of which the size is known and the pixels are decoded when they are asked for, at the scale asked for.

    Made by `load_image` or `open_picture`.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        jpeg: bytes | memoryview | None = None,
        scalable: bool = False,
        pixels: np.ndarray | None = None,
    ):
        self.width = width
        self.height = height
        self._jpeg = jpeg
        self._scalable = scalable
        self._pixels = pixels

    def shrink_for(self, limit: float) -> int:
        """The largest factor by which decoding can divide the size without exceeding `limit`; 1 if it cannot at all."""
        return 1 if not self._scalable else max(shrink for shrink in SHRINKS if shrink <= max(limit, 1))

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """RGB pixels, uint8 (⌈height ÷ shrink⌉, ⌈width ÷ shrink⌉, 3). Not to be written to.

        Args:
            shrink: 1, or what `shrink_for` gave.

        Raises:
            CorruptImageError: it cannot be decoded to its end.
        """
        if self._jpeg is None:
            assert shrink == 1
            return self._pixels
        try:
            pixels = simplejpeg.decode_jpeg(
                self._jpeg, "RGB", min_height=-(-self.height // shrink), min_width=-(-self.width // shrink)
            )
        except ValueError:
            # It takes any oddity for an error. Which of them are damage is Pillow's to say, as it always was.
            full = np.asarray(decode(self._jpeg))
            return full if shrink == 1 else np.asarray(Image.fromarray(full).reduce(shrink))
        return pixels


def load_image(images: ImageSource, index: int) -> Picture:
    """Image `index` of a split, in RGB.

    Grey-scale, palette, CMYK and all other modes are converted as Pillow does it; transparency and the EXIF
    orientation are left out of account, as by torchvision's ImageFolder, with which the paper read its images.

    Raises:
        UnreadableImageError: it cannot be read.
        CorruptImageError: it is no image, or damaged; damage to a JPEG's body shows when its pixels are asked for.
    """
    try:
        stored = images.read(index)
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror or error}") from error
    return open_picture(stored)


def open_picture(stored: bytes | memoryview | np.ndarray) -> Picture:
    """An image as a split gives it: an encoded file, or pixels (H, W, 3) uint8. Errors as `load_image`."""
    if isinstance(stored, np.ndarray):
        return Picture(stored.shape[1], stored.shape[0], pixels=stored)
    if stored[:3] == _JPEG:
        try:
            height, width, colour_space, subsampling = simplejpeg.decode_jpeg_header(stored)
        except ValueError:
            colour_space = None
        if colour_space in _COLOUR_SPACES:
            return Picture(width, height, jpeg=stored, scalable=subsampling in _SCALABLE)
    image = decode(stored)
    return Picture(image.width, image.height, pixels=np.asarray(image))


def decode(encoded: bytes | memoryview) -> Image.Image:
    """An encoded image as an RGB picture of its full size. Errors as `load_image`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF data and the like, of which ImageNet has its share
            image = Image.open(io.BytesIO(encoded))
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its own text holds an object's address
        raise CorruptImageError("not an image" if encoded else "empty file") from error
    except Exception as error:  # damaged bytes make Pillow's decoders raise almost anything, SyntaxError included
        raise CorruptImageError(f"cannot be decoded: {error}") from error
