"""Timing several ways to do one thing side by side: in turns, so that what else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in each round."""

    rounds: list[float]

    @property
    def median_s(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median: how much the rounds disagree."""
        return (max(self.rounds) - min(self.rounds)) / self.median_s


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_in_turns(calls: Mapping[str, Callable[[], object]], *, rounds: int, round_s: float) -> dict[str, Timing]:
    """Every call, warm already, in `rounds` rounds; in each round about `round_s` seconds of each.

    The order turns by one from round to round. What a call queues on the device is waited for at the end of its turn.
    """
    repeats = {}
    for name, call in calls.items():
        wait_for_device()
        begin = time.perf_counter()
        call()
        wait_for_device()
        repeats[name] = max(1, round(round_s / (time.perf_counter() - begin)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            wait_for_device()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            wait_for_device()
            seconds[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: Timing(found) for name, found in seconds.items()}


def median_ratio(one: Timing, other: Timing) -> float:
    """How many times as long `other` takes as `one`: the median over rounds of the ratio within a round."""
    return statistics.median(theirs / ours for ours, theirs in zip(one.rounds, other.rounds, strict=True))
