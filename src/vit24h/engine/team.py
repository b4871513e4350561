"""Several processes that train one run together: who leads, and what all must agree on between two steps.

One process is the benchmark; this is for `accelerate launch`. The leader writes the record and its clock is the run's.
Every process goes the same way through the loop, because whatever only one of them can know (the time, a signal, a
corrupt image) is told to all before anybody acts on it. Must not know: models, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import Accelerator

Shared = TypeVar("Shared")


@dataclass(frozen=True)
class News:
    """What has come up since the last step: of one process, or, once shared, of all."""

    counted_s: float  # seconds that the budget counts: the leader's
    checkpoint_due: bool  # by the leader's clock
    stop_signal: int | None  # any process's
    incidents: tuple[dict[str, Any], ...]  # every process's


class Team:
    """This process among those that `accelerator` has joined; alone unless it was launched with others."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.size = accelerator.num_processes
        self.rank = accelerator.process_index
        # News travels between the hosts' memories: over the GPUs' own backend it would wait for their queues.
        self._group = dist.new_group(backend="gloo") if self.size > 1 else None

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agree(self, news: News) -> News:
        """The same news for all. Every process must call it, and waits for the others."""
        if self.alone:
            return news
        told: list[News] = [news] * self.size
        dist.all_gather_object(told, news, group=self._group)
        return News(
            counted_s=told[0].counted_s,
            checkpoint_due=told[0].checkpoint_due,
            stop_signal=next((one.stop_signal for one in told if one.stop_signal is not None), None),
            incidents=tuple(incident for one in told for incident in one.incidents),
        )

    def share(self, value: Shared) -> Shared:
        """The leader's `value`, for all. Every process must call it, and waits for the leader."""
        if self.alone:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def part(self) -> None:
        """Leave the other processes in order, once there is nothing more to agree on."""
        if not self.alone:
            dist.destroy_process_group()
