"""Random numbers by address: every draw is a function of (seed, epoch, position), whoever makes it and in which order.

Philox is a counter-based generator. Seed and purpose are its key, epoch and position the upper half of its counter,
so no two addresses share a number and none needs the state of another.

Must not know: what is drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for. The values are part of every run's result: add to them, never renumber."""

    ORDER = 0
    SAMPLE = 1
    MIX = 2
    ERASING_NOISE = 3
    DRAWING = 4


def generator(stream: Stream, seed: int, epoch: int, position: int = 0) -> np.random.Generator:
    """The generator at an address.

    Args:
        stream: purpose; streams are independent of each other.
        seed: of the run, 0 or more, below 2^64.
        epoch: counted from 0.
        position: of the sample, or of the batch's first sample, in the epoch's order.
    """
    # The generator counts up in the two lower words: 2^128 steps until it would reach another address.
    return np.random.Generator(np.random.Philox(counter=[0, 0, position, epoch], key=[seed, stream]))


class Generators:
    """The generators of one stream and seed, one at a time: moving one takes a fifth of the time that making one does.

    Args: as of `generator`.
    """

    def __init__(self, stream: Stream, seed: int):
        self._generator = generator(stream, seed, 0)
        self._state = self._generator.bit_generator.state

    def at(self, epoch: int, position: int) -> np.random.Generator:
        """What `generator` would give at this address. The same object each time: be done with it before the next."""
        self._state["state"]["counter"][2:] = position, epoch
        self._generator.bit_generator.state = self._state
        return self._generator
