"""In which order an epoch shows the images: a pure function of (seed, epoch).

Must not know: batches, files, augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vit24h.data.randomness import Stream, generator
from vit24h.errors import UserError


@dataclass(frozen=True)
class EpochOrder:
    """Shuffled order with repeated augmentation (METHOD.md, recipe).

    Every epoch is a new permutation in which each image comes `repeats` times in a row, cut to `samples_per_epoch`:
    with 3 repeats an epoch shows a third of the images, three crops of each. The paper's sampler, on one GPU.

    Args:
        num_images: of the training split.
        seed: of the run.
        repeats: crops of an image, neighbours in the order; 1 turns repeated augmentation off.
        epoch_multiple: an epoch's samples are cut down to a multiple of it.

    Raises:
        UserError: fewer images than `epoch_multiple`.
    """

    num_images: int
    seed: int
    repeats: int
    epoch_multiple: int

    def __post_init__(self) -> None:
        if self.samples_per_epoch == 0:
            raise UserError(
                f"data.epoch_multiple {self.epoch_multiple}: an epoch would be empty, as there are only "
                f"{self.num_images} training images: set data.epoch_multiple to at most {self.num_images}"
            )

    @property
    def samples_per_epoch(self) -> int:
        """Crops in an epoch, a multiple of `epoch_multiple`."""
        return self.num_images // self.epoch_multiple * self.epoch_multiple

    def image_indices(self, epoch: int) -> np.ndarray:
        """(samples_per_epoch,) int32: which image is shown at each position of an epoch."""
        shuffled = generator(Stream.ORDER, self.seed, epoch).permutation(self.num_images)
        distinct = -(-self.samples_per_epoch // self.repeats)
        return np.repeat(shuffled[:distinct].astype(np.int32), self.repeats)[: self.samples_per_epoch]
