"""Schedules: the learning rate and the image size at every border."""

import math

import pytest

from vit24h.schedules import (
    batch_factor,
    batch_size_of_tokens,
    curriculum_sizes,
    growing_stages,
    image_size,
    learning_rate,
)

PUBLISHED = [  # (initial size, epochs per stage, size step), and the epoch at which each size begins
    ((32, 5, 32), {0: 32, 5: 64, 10: 96, 15: 128, 20: 160, 25: 192, 30: 224}),
    ((64, 5, 32), {0: 64, 5: 96, 10: 128, 15: 160, 20: 192, 25: 224}),
    ((64, 3, 16), {0: 64, 3: 80, 6: 96, 9: 112, 12: 128, 15: 144, 18: 160, 21: 176, 24: 192, 27: 208, 30: 224}),
    ((128, 5, 16), {0: 128, 5: 144, 10: 160, 15: 176, 20: 192, 25: 208, 30: 224}),
    ((128, 3, 16), {0: 128, 3: 144, 6: 160, 9: 176, 12: 192, 15: 208, 18: 224}),
]


@pytest.mark.parametrize(("schedule", "begins"), PUBLISHED)
def test_published_curricula_by_epochs(schedule, begins):
    initial_size, epochs_per_stage, size_step = schedule
    settings = {"initial_size": initial_size, "size_step": size_step, "final_size": 224}

    def size_at(epoch):
        return image_size(epoch, stage_length=epochs_per_stage, **settings)

    for epoch, size in begins.items():
        assert size_at(epoch) == size
        assert size_at(epoch + 0.999) == size  # within its first epoch
        if epoch:
            assert size_at(epoch - 1) == size - size_step
            assert size_at(epoch - 1e-4) == size - size_step  # up to the last step before the border
    assert size_at(max(begins) + 300) == 224
    assert curriculum_sizes(initial_size, size_step, 224) == list(begins.values())


@pytest.mark.parametrize("stages", range(1, 30))
def test_a_curriculum_by_budget_changes_size_at_its_fractions(stages):
    length = 1 / (stages + 1)  # 1/3, 0.1, ...: not all of them exact in binary
    for stage in range(stages + 1):
        settings = {"initial_size": 16, "size_step": 16, "stage_length": length, "final_size": 16 * (stages + 1)}
        assert image_size(stage * length, **settings) == 16 * (stage + 1)
        assert image_size((stage + 1) * length - 1e-6, **settings) == 16 * (stage + 1)


def test_the_last_step_of_a_curriculum_ends_at_the_final_size():
    assert curriculum_sizes(32, 64, 224) == [32, 96, 160, 224]
    assert curriculum_sizes(128, 64, 224) == [128, 192, 224]
    assert curriculum_sizes(224, 32, 224) == [224]
    for curriculum in ((32, 64, 224), (128, 64, 224), (224, 32, 224), (32, 32, 224), (32, 33, 224)):
        assert growing_stages(*curriculum) == len(curriculum_sizes(*curriculum)) - 1
    assert growing_stages(1, 1, 10**18) == 10**18 - 1  # at once, and without a list of them
    assert image_size(2, initial_size=128, size_step=64, stage_length=1, final_size=224) == 224


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 1.25e-4),
        (18, 1.2399e-4),  # where the authors' baseline ended: hardly decayed
        (150, (1.25e-4 + 1e-5) / 2),
        (299, 1e-5 + 1.15e-4 * (1 + math.cos(math.pi * 299 / 300)) / 2),
        (300, 1e-5),
        (1000, 1e-5),
    ],
)
def test_the_papers_learning_rate(epoch, expected):
    assert learning_rate(epoch / 300, peak=1.25e-4, minimum=1e-5) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("warmup", "factor"), [(0, 0), (0.25, 0.25), (1, 1), (7, 1)])
def test_warm_up_is_linear_from_zero(warmup, factor):
    assert learning_rate(0.0, peak=2.0, minimum=0.0, warmup=warmup) == pytest.approx(2.0 * factor)


@pytest.mark.parametrize(
    ("image_size", "expected"),  # at 16-pixel patches: 197 tokens at 224 px
    [
        (224, 64),
        (192, 80),  # 64 × 197 / 145 = 86.9
        (160, 120),  # / 101 = 124.8
        (128, 192),  # / 65 = 193.9
        (96, 336),  # / 37 = 340.7
        (64, 736),  # / 17 = 741.6
        (32, 2520),  # / 5 = 2521.6
    ],
)
def test_batches_of_as_many_tokens(image_size, expected):
    tokens = 1 + (image_size // 16) ** 2
    assert batch_size_of_tokens(64, full_tokens=197, tokens=tokens, multiple=8) == expected
    assert 0 <= 64 * 197 - expected * tokens < 8 * tokens or image_size == 224


@pytest.mark.parametrize(
    ("batch_size", "multiple", "expected"), [(6, 8, 8), (5, 8, 5), (64, 24, 72), (1, 8, 1), (3, 3, 3)]
)
def test_a_batch_of_tokens_is_rounded_down_and_never_smaller(batch_size, multiple, expected):
    assert batch_size_of_tokens(batch_size, full_tokens=197, tokens=145, multiple=multiple) == expected


@pytest.mark.parametrize(("scaling", "expected"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_the_learning_rate_of_a_batch_that_has_grown(scaling, expected):
    assert batch_factor(256, 64, scaling) == expected
    assert batch_factor(64, 64, scaling) == 1.0
