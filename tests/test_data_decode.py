"""Decoding: whatever Pillow can open becomes RGB; whatever is damaged is called corrupt, and why."""

import io

import numpy as np
import pytest
from PIL import Image

from vit24h.data.decode import CorruptImageError, decode


def picture(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:48, :64]
    pixels = np.stack([4 * x, 5 * y, 255 - 3 * x], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_any_colour_space_becomes_rgb(mode):
    decoded = decode(encoded(picture(mode), "JPEG", quality=95))
    assert decoded.mode == "RGB"
    assert decoded.size == (64, 48)
    expected = np.asarray(picture(mode).convert("RGB"), float)
    assert abs(np.asarray(decoded, float) - expected).mean() < 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_png_of_any_mode_becomes_rgb(mode):
    image = picture("L").convert("I").convert("I;16") if mode == "I;16" else picture(mode)
    assert decode(encoded(image, "PNG")).mode == "RGB"


def test_a_png_behind_a_jpeg_name_is_an_image():
    assert (np.asarray(decode(encoded(picture(), "PNG"))) == np.asarray(picture())).all()


@pytest.mark.filterwarnings("error")
def test_broken_exif_data_is_passed_over_in_silence():
    junk = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff junk"
    assert decode(encoded(picture(), "JPEG", exif=junk)).size == (64, 48)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text file named .jpg", "not an image"),
        (encoded(picture(), "JPEG")[:-200], "cannot be decoded: .*truncated"),
        (encoded(picture().resize((640, 480)), "PNG", compress_level=0)[:-5000], "cannot be decoded: .*truncated"),
        (encoded(picture(), "JPEG")[:30], "cannot be decoded: Truncated"),
    ],
    ids=["empty", "text", "half a JPEG", "half a PNG", "a JPEG's header"],
)
def test_damage_is_an_error_that_says_why(content, reason):
    with pytest.raises(CorruptImageError, match=reason) as error:
        decode(content)
    assert "0x" not in str(error.value), "the reason is the same in every run"


def test_no_damage_to_a_file_escapes_as_another_error():
    rng = np.random.default_rng(0)
    files = [
        encoded(picture(), "JPEG"),
        encoded(picture("P"), "PNG"),
        encoded(picture(), "TIFF"),
        encoded(picture(), "BMP"),
    ]
    corrupt = 0
    for _ in range(400):
        content = bytearray(files[rng.integers(len(files))])
        for position in rng.integers(len(content), size=8):
            content[position] = rng.integers(256)
        try:
            decode(bytes(content))
        except CorruptImageError:
            corrupt += 1
    assert corrupt > 50
