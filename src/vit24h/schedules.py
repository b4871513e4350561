"""What changes during training, as pure functions of how far it has got: learning rate, image size, batch size.

Must not know: torch, clocks, files, configurations.
"""

from __future__ import annotations

import math


def learning_rate(progress: float, *, peak: float, minimum: float, warmup: float = 1.0) -> float:
    """A half cosine from `peak` to `minimum`, which it keeps from there on, ramped up linearly over the warm-up.

    Args:
        progress: 0 at the start of the schedule, 1 at its end; larger is past the end.
        warmup: how much of the warm-up is done: 0 at its start, 1 or more when it is over or there is none.
    """
    cosine = minimum + (peak - minimum) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return cosine * min(warmup, 1.0)


def image_size(position: float, *, initial_size: int, size_step: int, stage_length: float, final_size: int) -> int:
    """The curriculum: `initial_size` pixels, `size_step` more at the end of every stage, never above `final_size`.

    `position` and `stage_length` have the same unit: epochs (as in the paper), or fractions of the budget.

    Source: METHOD.md, "Image-size curriculum".
    """
    # 0.3 / 0.1 is 2.9999999999999996: a border is reached when it is reached but for rounding
    stages_done = math.floor(position / stage_length + 1e-9)
    return min(initial_size + size_step * stages_done, final_size)


def curriculum_sizes(initial_size: int, size_step: int, final_size: int) -> list[int]:
    """All image sizes of a curriculum in order, in pixels: `curriculum_sizes(32, 32, 224)` has seven."""
    return [*range(initial_size, final_size, size_step), final_size]


def growing_stages(initial_size: int, size_step: int, final_size: int) -> int:
    """How many stages of a curriculum come before the one at `final_size`. Counts them without listing them."""
    return -((initial_size - final_size) // size_step)


def batch_size_of_tokens(full_batch_size: int, *, full_tokens: int, tokens: int, multiple: int) -> int:
    """Images in a batch of about as many tokens as `full_batch_size` images of `full_tokens` have.

    Args:
        tokens: of an image of this batch.
        multiple: the answer is rounded down to a multiple of it, but never below `full_batch_size`.
    """
    return max(full_batch_size, full_batch_size * full_tokens // tokens // multiple * multiple)


def batch_factor(batch_size: int, full_batch_size: int, scaling: str) -> float:
    """What the learning rate is multiplied by for a batch that has grown: `none`, `sqrt` or `linear` in its size."""
    return (batch_size / full_batch_size) ** {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[scaling]
