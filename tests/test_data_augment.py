"""The recipe's augmentation on the CPU, against the references: timm, which the paper trained with, and torchvision."""

import dataclasses
import io
import math
import random

import numpy as np
import pytest
import timm.data.auto_augment as timm_randaugment
import torch
import torchvision.transforms.v2 as torchvision_transforms
import torchvision.transforms.v2.functional as torchvision_functional
from PIL import Image
from timm.data.random_erasing import RandomErasing as TimmRandomErasing

from vit24h.config import load_config
from vit24h.data import EvalTransform, TrainTransform
from vit24h.data.augment import (
    OPERATIONS,
    Operation,
    apply_operation,
    draw_crop,
    draw_erasing_box,
    draw_operations,
)
from vit24h.data.decode import open_picture

PAPER = load_config("base")
RECIPE = PAPER.augmentation
FILL = (124, 116, 104)  # 255 × ImageNet's mean

# Our name of an operation, and timm's of the "increasing" variant.
TIMM_NAMES = {
    name: {
        "Posterize": "PosterizeIncreasing",
        "Solarize": "SolarizeIncreasing",
        "Color": "ColorIncreasing",
        "Contrast": "ContrastIncreasing",
        "Brightness": "BrightnessIncreasing",
        "Sharpness": "SharpnessIncreasing",
        "TranslateX": "TranslateXRel",
        "TranslateY": "TranslateYRel",
    }.get(name, name)
    for name in OPERATIONS
}

MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY")


def photo(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    """Something with edges, gradients and noise in three channels that differ."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def training_crop(image: Image.Image, image_size: int, seed: int, recipe=RECIPE, *, scaled_decoding=True) -> np.ndarray:
    transform = TrainTransform(recipe, PAPER.data.mean, scaled_decoding=scaled_decoding)
    return transform.crops(open_picture(np.asarray(image)), image_size, [np.random.default_rng(seed)])[0]


def timm_operation(name: str, magnitude: float) -> timm_randaugment.AugmentOp:
    hparams = {"img_mean": FILL, "interpolation": Image.BICUBIC}
    return timm_randaugment.AugmentOp(TIMM_NAMES[name], prob=1.0, magnitude=magnitude, hparams=hparams)


def test_the_15_operations_are_those_of_the_paper():
    assert set(TIMM_NAMES.values()) == set(timm_randaugment._RAND_INCREASING_TRANSFORMS)
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize("magnitude", [0.0, 2.3, 5.0, 7.49, 9.0, 9.6, 9.999])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_makes_the_same_pixels_as_timms(name, magnitude):
    image = photo()
    for sign in (1, -1):
        # The one random thing in timm's operation is its direction: take a seed that makes it this one.
        seed = next(s for s in range(100) if (random.Random(s).random() > 0.5) == (sign < 0))
        random.seed(seed)
        expected = timm_operation(name, magnitude)(image)
        found = apply_operation(np.asarray(image), Operation(name, sign * magnitude / 10), FILL)
        difference = abs(np.asarray(found, int) - np.asarray(expected))
        if (
            name in MOVES
        ):  # ours, in single precision: where the sum is nearly whole it may be cut down to the next level
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.1
        else:
            assert difference.max() == 0


def test_an_operation_leaves_its_input_as_it_was():
    pixels = np.array(photo())
    before = pixels.copy()
    for name in OPERATIONS:
        apply_operation(pixels, Operation(name, 0.9), FILL)
    assert (pixels == before).all()


def test_each_crop_gets_the_operations_that_were_drawn_for_it_in_their_order():
    """One after another, as the recipe has them, though the work is done one kind of operation after another."""
    transform = TrainTransform(RECIPE, PAPER.data.mean, scaled_decoding=True)
    draws = [transform.draw(40, 40, 32, np.random.default_rng(seed)) for seed in range(60)]
    assert {len(drawn.operations) for drawn in draws} == {0, 1, 2}
    before = np.stack([np.asarray(photo(32, 32, seed)) for seed in range(60)])
    found = before.copy()
    transform.randaugment(found, draws)
    for crop, drawn, result in zip(before, draws, found, strict=True):
        for operation in drawn.operations:
            crop = apply_operation(crop, operation, FILL)
        assert (result == crop).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (3, 3)])
def test_pictures_of_hardly_any_pixels_make_the_same_pixels_as_timms_too(size):
    image = photo(*size)
    for name in OPERATIONS:
        seed = next(s for s in range(100) if random.Random(s).random() <= 0.5)
        random.seed(seed)
        expected = np.asarray(timm_operation(name, 9.0)(image), int)
        found = apply_operation(np.asarray(image), Operation(name, 0.9), FILL)
        assert abs(found - expected).max() <= (name in MOVES), name


def test_posterize_at_full_strength_is_black_where_pillow_refuses():
    """No bit is kept. Older Pillows drew black, the paper's among them; today's raise an error, and timm with them."""
    assert np.asarray(apply_operation(np.asarray(photo()), Operation("Posterize", 1.0), FILL)).max() == 0
    with pytest.raises(ValueError, match="bits"):
        timm_operation("Posterize", 10.0)(photo())


def test_operations_are_drawn_as_the_recipe_says():
    rng = np.random.default_rng(0)
    draws = [draw_operations(RECIPE, rng) for _ in range(20_000)]
    number = np.bincount([len(operations) for operations in draws], minlength=3) / len(draws)
    assert number == pytest.approx([0.25, 0.5, 0.25], abs=0.012)  # two, each with probability 0.5

    drawn = [operation for operations in draws for operation in operations]
    for name in OPERATIONS:
        assert sum(operation.name == name for operation in drawn) / len(drawn) == pytest.approx(1 / 15, abs=0.007)
    assert any(len(operations) == 2 and operations[0].name == operations[1].name for operations in draws)

    strength = np.array([operation.strength for operation in drawn])
    magnitude = 10 * abs(strength)
    assert (strength > 0).mean() == pytest.approx(0.5, abs=0.015)
    assert magnitude.max() == 10
    assert (magnitude == 10).mean() == pytest.approx(0.0228, abs=0.005)  # beyond two deviations: clipped
    assert np.median(magnitude) == pytest.approx(9, abs=0.02)
    assert magnitude[magnitude < 9].std() == pytest.approx(0.5 * math.sqrt(1 - 2 / math.pi), abs=0.01)


def test_no_operation_is_drawn_where_randaugment_is_off():
    for off in ({"randaugment_ops": 0}, {"randaugment_probability": 0.0}):
        assert draw_operations(dataclasses.replace(RECIPE, **off), np.random.default_rng(0)) == []


def test_randaugment_changes_pictures_as_timms_does_on_the_whole():
    """Statistics of many results agree. At mean magnitude 8, as at 9 timm now and then asks Pillow for 0 bits."""
    image = photo(32, 32)
    recipe = dataclasses.replace(RECIPE, randaugment_magnitude=8.0)
    hparams = {"img_mean": FILL, "interpolation": Image.BICUBIC}
    reference = timm_randaugment.rand_augment_transform("rand-m8-mstd0.5-inc1", hparams)
    random.seed(0)
    np.random.seed(0)
    rng = np.random.default_rng(0)

    def statistics(pixels: np.ndarray) -> list[float]:
        moved = abs(pixels.astype(float) - np.asarray(image, float)).mean()
        filled = (pixels == FILL).all(-1).mean()
        return [pixels.mean(), pixels.std(), moved, filled, moved == 0, pixels[:8].mean(), pixels[:, :8].mean()]

    count = 4000
    expected = np.array([statistics(np.asarray(reference(image))) for _ in range(count)])
    found = []
    for _ in range(count):
        result = np.asarray(image)
        for operation in draw_operations(recipe, rng):
            result = apply_operation(result, operation, FILL)
        found.append(statistics(np.asarray(result)))
    found = np.array(found)
    error = np.sqrt((expected.var(0) + found.var(0)) / count)
    assert (abs(expected.mean(0) - found.mean(0)) < 4 * error).all()


@pytest.mark.parametrize("size", [(500, 375), (120, 300), (900, 300), (33, 32)])
def test_crops_are_drawn_as_torchvision_draws_them(size):
    width, height = size
    reference = torchvision_transforms.RandomResizedCrop(224, RECIPE.crop_scale, RECIPE.crop_ratio)
    blank = torch.empty(3, height, width)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    names = ("top", "left", "height", "width")
    expected = [reference.make_params([blank]) for _ in range(3000)]
    expected = np.array([[box[name] for name in names] for box in expected], float)
    found = np.array([draw_crop(RECIPE, width, height, rng) for _ in range(3000)], float)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 0] + found[:, 2] <= height).all()
    assert (found[:, 1] + found[:, 3] <= width).all()
    for share in (10, 25, 50, 75, 90):
        difference = abs(np.percentile(found, share, axis=0) - np.percentile(expected, share, axis=0))
        assert (difference <= 0.035 * np.array([height, width, height, width]) + 1).all()


@pytest.mark.parametrize("size", [(400, 10), (10, 400), (100, 99), (1, 1), (1, 300)])
def test_where_no_box_fits_the_crop_is_torchvisions_centred_one(size):
    width, height = size
    recipe = dataclasses.replace(RECIPE, crop_scale=(1.0, 1.0), crop_ratio=(0.75, 0.7501 if width == 100 else 4 / 3))
    reference = torchvision_transforms.RandomResizedCrop(224, recipe.crop_scale, recipe.crop_ratio)
    expected = reference.make_params([torch.empty(3, height, width)])
    found = draw_crop(recipe, width, height, np.random.default_rng(0))
    assert found == (expected["top"], expected["left"], expected["height"], expected["width"])


@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_a_training_crop_has_the_size_asked_for(image_size):
    pixels = training_crop(photo(), image_size, 0)
    assert pixels.shape == (image_size, image_size, 3)
    assert pixels.dtype == np.uint8


def test_a_training_crop_is_a_function_of_picture_size_and_generator():
    crops = [training_crop(photo(), 48, seed) for seed in range(20)]
    again = [training_crop(photo(), 48, seed) for seed in range(20)]
    assert all((one == two).all() for one, two in zip(crops, again, strict=True))
    assert len({crop.tobytes() for crop in crops}) == 20


def test_half_of_the_crops_are_flipped():
    recipe = dataclasses.replace(RECIPE, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), randaugment_ops=0)
    image = photo(32, 32)
    straight, mirrored = np.asarray(image), np.asarray(image)[:, ::-1]
    crops = [training_crop(image, 32, seed, recipe) for seed in range(400)]
    assert all((crop == straight).all() or (crop == mirrored).all() for crop in crops)
    assert sum((crop == mirrored).all() for crop in crops) == pytest.approx(200, abs=50)


def jpeg_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def crops_of(content: bytes, image_size: int, *, scaled_decoding: bool) -> list[np.ndarray]:
    recipe = dataclasses.replace(RECIPE, randaugment_ops=0)
    transform = TrainTransform(recipe, PAPER.data.mean, scaled_decoding=scaled_decoding)
    rngs = [np.random.default_rng(seed) for seed in range(3)]
    return transform.crops(open_picture(content), image_size, rngs)


def test_without_scaled_decoding_a_crop_is_what_torchvision_makes_with_pillow():
    content = jpeg_of(photo(500, 375))
    for seed, found in enumerate(crops_of(content, 64, scaled_decoding=False)):
        rng = np.random.default_rng(seed)
        box = draw_crop(RECIPE, 500, 375, rng)
        expected = torchvision_functional.resized_crop(
            Image.open(io.BytesIO(content)), *box, [64, 64], torchvision_transforms.InterpolationMode.BICUBIC
        )
        if rng.random() < 0.5:
            expected = torchvision_functional.horizontal_flip(expected)
        assert (found == np.asarray(expected)).all()


@pytest.mark.parametrize("image_size", [32, 64, 96, 128, 224])
def test_scaled_decoding_changes_a_crop_little(image_size):
    """The noise in this picture is the worst that can be asked: all of it is at the highest frequencies."""
    for seed in range(4):
        content = jpeg_of(photo(500, 375, seed))
        pairs = zip(
            crops_of(content, image_size, scaled_decoding=True),
            crops_of(content, image_size, scaled_decoding=False),
            strict=True,
        )
        for scaled, exact in pairs:
            assert 10 * np.log10(255**2 / ((scaled.astype(float) - exact) ** 2).mean()) > 30


def test_no_crop_is_enlarged_because_of_the_scale_it_was_decoded_at():
    transform = TrainTransform(RECIPE, PAPER.data.mean, scaled_decoding=True)
    picture = open_picture(jpeg_of(photo(500, 375)))
    seen = set()
    for seed in range(200):
        draws = [transform.draw(500, 375, 32, np.random.default_rng([seed, crop])) for crop in range(3)]
        shrink = transform.shrink(picture, draws, 32)
        seen.add(shrink)
        least = min(min(drawn.crop[2:]) for drawn in draws)
        assert shrink == 1 or least / shrink >= 32
        assert shrink == 8 or least / (2 * shrink) < 32
    assert seen == {2, 4, 8}


@pytest.mark.parametrize("size", [(500, 375), (300, 301), (64, 64), (90, 400)])
def test_evaluation_sees_what_torchvisions_resize_and_centre_crop_make(size):
    reference = torchvision_transforms.Compose(
        [
            torchvision_transforms.Resize(256, torchvision_transforms.InterpolationMode.BICUBIC),
            torchvision_transforms.CenterCrop(224),
        ]
    )
    image = photo(*size)
    found = EvalTransform(224, PAPER.data.eval_resize_ratio)(open_picture(np.asarray(image)))
    assert found.shape == (224, 224, 3)
    assert (found == np.asarray(reference(image))).all()


def test_erasing_boxes_are_drawn_as_timm_draws_them():
    rng = np.random.default_rng(0)
    size, count = 64, 8000
    found = np.array([draw_erasing_box(RECIPE, size, rng) for _ in range(count)], float)
    assert (found[:, :2] >= 0).all() and (found[:, :2] + found[:, 2:] <= size).all()
    erased = found[found[:, 2] > 0]
    assert len(erased) / count == pytest.approx(RECIPE.erasing_probability, abs=0.02)

    random.seed(0)
    reference = TimmRandomErasing(probability=1.0, mode="const", device="cpu")
    expected = []
    for _ in range(2000):
        inside = (reference(torch.ones(1, size, size))[0] == 0).nonzero()
        top, left = inside.amin(0).tolist()
        bottom, right = (inside.amax(0) + 1).tolist()
        expected.append((top, left, bottom - top, right - left))
    for share in (10, 25, 50, 75, 90):
        difference = abs(np.percentile(erased, share, axis=0) - np.percentile(np.array(expected, float), share, axis=0))
        assert (difference <= 3).all()


def test_nothing_is_erased_where_erasing_is_off():
    off = dataclasses.replace(RECIPE, erasing_probability=0.0)
    assert {draw_erasing_box(off, 64, np.random.default_rng(seed)) for seed in range(50)} == {(0, 0, 0, 0)}
