"""The order of an epoch: shuffled, repeated, cut, and the same whenever it is asked for."""

import numpy as np
import pytest

from vit24h.data import EpochOrder
from vit24h.errors import UserError


def test_an_epoch_of_imagenet_is_a_third_of_the_images_three_times():
    order = EpochOrder(num_images=1_281_167, seed=0, repeats=3, epoch_multiple=256)
    assert order.samples_per_epoch == 1_281_024  # 5004 × 256
    indices = order.image_indices(0)
    assert indices.shape == (1_281_024,)
    assert indices.dtype == np.int32
    assert indices.min() >= 0
    assert indices.max() < 1_281_167
    copies = indices.reshape(-1, 3)
    assert (copies == copies[:, :1]).all(), "the crops of an image are neighbours"
    assert len(np.unique(copies[:, 0])) == 427_008


@pytest.mark.parametrize(
    ("num_images", "repeats", "epoch_multiple", "samples"),
    [(10, 1, 1, 10), (10, 1, 4, 8), (10, 3, 4, 8), (256, 3, 256, 256), (511, 2, 256, 256), (5, 10, 1, 5)],
)
def test_length_and_repeats(num_images, repeats, epoch_multiple, samples):
    order = EpochOrder(num_images, 0, repeats, epoch_multiple)
    indices = order.image_indices(7)
    assert order.samples_per_epoch == len(indices) == samples
    firsts = indices[::repeats]
    assert len(set(firsts.tolist())) == len(firsts), "no image comes back later in the epoch"
    assert (indices == np.repeat(firsts, repeats)[:samples]).all()


def test_every_image_is_shown_in_an_epoch_without_repeats():
    assert sorted(EpochOrder(100, 0, 1, 1).image_indices(3)) == list(range(100))


def test_the_order_is_a_function_of_seed_and_epoch():
    one, same, other = (EpochOrder(1000, seed, 3, 1) for seed in (5, 5, 6))
    assert (one.image_indices(2) == same.image_indices(2)).all()
    assert (one.image_indices(2) != one.image_indices(3)).any()
    assert (one.image_indices(2) != other.image_indices(2)).any()


def test_every_image_is_as_likely_as_any_other_over_epochs():
    order = EpochOrder(90, 0, 3, 1)
    shown = np.zeros(90)
    for epoch in range(2000):
        shown[order.image_indices(epoch)[::3]] += 1
    # 30 of 90 an epoch: binomial, mean 666.7, deviation 21.1
    assert abs(shown - 2000 / 3).max() < 5 * 21.1


def test_too_few_images_for_an_epoch_say_what_to_set():
    with pytest.raises(UserError, match=r"set data\.epoch_multiple to at most 200"):
        EpochOrder(200, 0, 3, 256)
