"""From a file's bytes to an RGB picture.

Must not know: crops, sizes, labels, torch.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from vit24h.data.index import ImageSource


class CorruptImageError(ValueError):
    """A file that holds no complete image. The message is the reason, without the path."""


class UnreadableImageError(CorruptImageError):
    """A file that the system does not give."""


def load_image(images: ImageSource, index: int) -> Image.Image:
    """Image `index` of a split, decoded, in RGB.

    Grey-scale, palette, CMYK and all other modes are converted as Pillow does it; transparency and the EXIF
    orientation are left out of account, as by torchvision's ImageFolder, with which the paper read its images.

    Raises:
        UnreadableImageError: it cannot be read.
        CorruptImageError: it cannot be decoded to its end.
    """
    try:
        stored = images.read(index)
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror}") from error
    return Image.fromarray(stored) if isinstance(stored, np.ndarray) else decode(stored)


def decode(encoded: bytes | memoryview) -> Image.Image:
    """An encoded image as an RGB picture. Errors as `load_image`."""
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
