"""Decoding: whatever Pillow can open becomes RGB; whatever is damaged is called corrupt, and why."""

import io

import numpy as np
import pytest
from PIL import Image

from vit24h.data.decode import CorruptImageError, decode, open_picture


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


# -- at the scale that is asked for -----------------------------------------------------------------------------------


def as_jpeg(mode: str = "RGB", size: tuple[int, int] = (203, 131), **options) -> bytes:
    """With edges and noise, and of a size that no factor divides."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize(size, Image.BICUBIC).convert(mode), "JPEG", quality=92, **options)


JPEGS = {
    "4:4:4": as_jpeg(subsampling="4:4:4"),
    "4:2:2": as_jpeg(subsampling="4:2:2"),
    "4:2:0": as_jpeg(subsampling="4:2:0"),
    "grey-scale": as_jpeg("L"),
    "progressive": as_jpeg(progressive=True),
    "broken EXIF data": as_jpeg(exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff junk"),
}


@pytest.mark.parametrize("content", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_decoded_in_full_is_pillows_pixel_for_pixel(content):
    found = open_picture(content)
    assert (found.width, found.height) == (203, 131)
    assert (found.pixels() == np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))).all()


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind != "4:2:2"])
def test_a_jpeg_decoded_at_a_fraction_shows_the_same_picture(kind, shrink):
    content = JPEGS[kind]
    found = open_picture(content).pixels(shrink)
    assert found.shape == (-(-131 // shrink), -(-203 // shrink), 3)
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB").reduce(shrink), float)
    assert abs(found - whole)[:-1, :-1].mean() < 2.5  # the last row and column lie over the border


@pytest.mark.parametrize(
    ("limit", "shrink"), [(0.4, 1), (1.0, 1), (1.99, 1), (2.0, 2), (3.9, 2), (4.0, 4), (7.9, 4), (8.0, 8), (100.0, 8)]
)
def test_the_scale_never_goes_below_what_is_needed(limit, shrink):
    assert open_picture(JPEGS["4:2:0"]).shrink_for(limit) == shrink


def test_a_jpeg_whose_colour_is_coarser_in_one_direction_is_decoded_in_full():
    assert open_picture(JPEGS["4:2:2"]).shrink_for(8) == 1


def test_what_is_no_jpeg_of_the_common_kinds_is_decoded_in_full_by_pillow():
    inverted_ycck = as_jpeg("CMYK")
    for content in (inverted_ycck, encoded(picture(), "PNG"), encoded(picture("P"), "GIF")):
        found = open_picture(content)
        assert found.shrink_for(8) == 1
        assert (found.pixels() == np.asarray(decode(content))).all()


def test_pixels_that_are_stored_as_such_are_taken_as_they_are():
    pixels = np.asarray(picture())
    found = open_picture(pixels)
    assert (found.width, found.height, found.shrink_for(8)) == (64, 48, 1)
    assert found.pixels() is pixels


def test_an_oddity_that_pillow_reads_over_is_no_damage():
    """Bytes between the scan's end and the end marker: libjpeg warns, and everybody shows the picture."""
    content = as_jpeg()
    odd = content[:-2] + b"\x00" * 40 + content[-2:]
    for shrink in (1, 4):
        assert open_picture(odd).pixels(shrink).shape[1] == -(-203 // shrink)
    assert (open_picture(odd).pixels() == np.asarray(Image.open(io.BytesIO(odd)))).all()


@pytest.mark.parametrize("shrink", [1, 2, 8])
def test_half_a_jpeg_is_corrupt_at_every_scale(shrink):
    half = as_jpeg()[: len(as_jpeg()) // 2]
    with pytest.raises(CorruptImageError, match=r"cannot be decoded: .*truncated"):
        open_picture(half).pixels(shrink)
